"""The models that are measured: the shape of GPT-2 with 124 million random weights; speed does not depend on values."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit

TOKENS = 5
# A folder to keep large models in from one run to the next.
MODELS = "PROBEKIT_BENCH_MODELS"


def gpt2(depth: int | None = None) -> probekit.Subject:
    """GPT-2, 12 blocks of width 768 and a vocabulary of 50257 unless cut, loaded as any other model is."""
    with tempfile.TemporaryDirectory() as folder:
        GPT2Config().save_pretrained(folder)
        return probekit.load(folder, weights="random", weights_seed=0, depth=depth)


@contextmanager
def saved(name: str, config: GPT2Config) -> Iterator[str]:
    """A folder with random weights of that config in shards of 1 GB: made for the occasion, or found in, and left in,
    the folder that the environment variable names.
    """
    with tempfile.TemporaryDirectory() as passing:
        folder = Path(os.environ.get(MODELS, passing)) / name
        if not (folder / "config.json").is_file():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                GPT2LMHeadModel(config).save_pretrained(folder, max_shard_size="1GB")
        yield str(folder)
