"""The models that are measured: the shape of GPT-2 with 124 million random weights; speed does not depend on values."""

from __future__ import annotations

import tempfile

from transformers import GPT2Config

import probekit

TOKENS = 5


def gpt2(depth: int | None = None) -> probekit.Subject:
    """GPT-2, 12 blocks of width 768 and a vocabulary of 50257 unless cut, loaded as any other model is."""
    with tempfile.TemporaryDirectory() as folder:
        GPT2Config().save_pretrained(folder)
        return probekit.load(folder, weights="random", weights_seed=0, depth=depth)
