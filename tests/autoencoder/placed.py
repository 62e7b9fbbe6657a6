"""What is left of predictions and prompts, with model and autoencoder on devices of their own: for another process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.autoencoder.modules import Plain
from probekit_plugins.autoencoder.sparse import Sparse
from probekit_plugins.autoencoder.splice import spliced
from probekit_plugins.autoencoder.survival import survivors
from probekit_plugins.autoencoder.through import reconstruction
from probekit_plugins.trainer import Step
from probekit_plugins.training_options import TrainingOptions
from tests.analyses.recovering import OTHER, PROMPT, few_samples, gpt2

WIDTH = 32


def figures(device: str, device_of_autoencoder: str) -> list[Any]:
    """Rows of both, and what was recovered."""
    subject = probekit.Subject(gpt2().model.to(device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Plain(WIDTH, 8, 2, 16).requires_grad_(False).to(device_of_autoencoder)
    given = {"plain": reconstruction(module)}
    texts, context = [PROMPT, OTHER[:5]], probekit.Context()
    with pytest.MonkeyPatch.context() as patch:
        few_samples(patch)
        prompts = survivors(subject, "block.1", given, texts, {"plain": 0.5}, 1, context)
    predictions = spliced(subject, "block.0", given, texts, 1, torch.zeros(WIDTH), context)
    return [predictions.rows, prompts.rows, [sequence.ids for sequence in prompts.recovered]]


def sparse(device: str) -> list[Any]:
    """The loss of a sparse autoencoder there, its examples being on the CPU, and what it makes of them."""
    module = Sparse("l1", WIDTH, 16, 0.3, TrainingOptions(steps=10), 0).to(device)
    examples = torch.randn(20, 1, WIDTH, generator=torch.Generator().manual_seed(0)) + 3
    module.prepare(examples)
    loss = module.loss(examples.to(device), Step(5, 0.5, torch.Generator()))
    return [float(loss), module.requires_grad_(False).reconstruct(examples[:, 0].to(device)).tolist()]
