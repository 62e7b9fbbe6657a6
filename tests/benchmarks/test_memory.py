"""A descent leaves nothing behind from one step to the next: not even what the garbage collector would find."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from benchmarks.descent import Descent
from benchmarks.process import live_tensors


@pytest.fixture
def subject() -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
    return probekit.Subject(GPT2LMHeadModel(config))


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def tensors_after(step: Callable[[], object], steps: int) -> int:
    for _ in range(steps):
        step()
    return live_tensors()


def layer_maps(subject: probekit.Subject) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "one map": subject.layer_map("block.1"),
        "a new map each step": lambda embeddings: subject.layer_map("block.1")(embeddings),
        "a site inside a block": subject.layer_map("transformer.h.0.mlp"),
        "the whole model": subject.layer_map("logits"),
    }


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("kind", ["one map", "a new map each step", "a site inside a block", "the whole model"])
def test_no_tensor_outlives_a_step(subject: probekit.Subject, kind: str) -> None:
    layer_map = layer_maps(subject)[kind]
    start = torch.randn(3, 4, 16)
    with torch.no_grad():
        target = layer_map(start + 1)
    descent = Descent(layer_map, start, target)
    early = tensors_after(descent.step, 10)
    assert tensors_after(descent.step, 40) == early


@pytest.mark.usefixtures("uncollected")
def test_what_a_capture_and_an_embedding_return_is_all_that_they_leave(subject: probekit.Subject) -> None:
    ids = torch.tensor([[1, 2, 3]])

    def read() -> None:
        subject.embed(ids)
        subject.capture(ids, ["block.0", "block.1"])

    early = tensors_after(read, 5)
    assert tensors_after(read, 40) == early


@pytest.mark.usefixtures("uncollected")
def test_the_count_sees_tensors_that_stay() -> None:
    kept: list[torch.Tensor] = []
    early = tensors_after(lambda: kept.append(torch.zeros(1)), 3)
    assert tensors_after(lambda: kept.append(torch.zeros(1)), 5) == early + 5
