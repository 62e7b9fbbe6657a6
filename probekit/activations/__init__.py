"""Activations of any number of prompts, in batches: from a live model, or from a recording of one.

A recording is a folder of safetensors shards with an index, written in one pass over the prompts by `write` and read
back by `Recording`; whoever consumes batches cannot tell it from the model.
"""

from probekit.activations.batch import ActivationBatch, ActivationSource
from probekit.activations.batching import BATCH_TOKENS, Batching
from probekit.activations.dataset import ActivationDataset
from probekit.activations.live import LiveActivations
from probekit.activations.recording import Recording
from probekit.activations.writing import SHARD_BYTES, Storage, write

__all__ = [
    "BATCH_TOKENS",
    "SHARD_BYTES",
    "ActivationBatch",
    "ActivationDataset",
    "ActivationSource",
    "Batching",
    "LiveActivations",
    "Recording",
    "Storage",
    "write",
]
