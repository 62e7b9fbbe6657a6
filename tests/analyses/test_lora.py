"""Adapters: which layers they stand beside, what they change, and what they leave as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

import probekit
from probekit_plugins import lora
from tests.one_word_autoencoder.small import gpt2, llama

IDS = torch.tensor([[3, 4, 5, 6]])
SUBJECTS = {"gpt2": gpt2, "llama": llama}
every_model = pytest.mark.parametrize("name", SUBJECTS)


def logits(subject: probekit.Subject) -> torch.Tensor:
    return subject.capture(IDS, ["logits"])["logits"]


def test_linear_layers_are_found_by_what_they_are() -> None:
    """GPT-2's are transposed, and Llama's are not; the head is in no block."""
    assert [path for path in lora.linear_layers(gpt2()) if path.startswith("transformer.h.1.")] == [
        f"transformer.h.1.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert len(lora.linear_layers(llama())) == 3 * 7


@every_model
def test_an_adapter_begins_as_nothing_and_then_is_a_product_of_rank_r(name: str) -> None:
    subject = SUBJECTS[name]()
    copy = lora.adapted(subject, rank=2, alpha=6.0, seed=1)
    assert torch.equal(logits(copy), logits(subject))
    layer = copy.model.get_submodule(lora.linear_layers(subject)[0])
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(0))
        x = torch.randn(5, a.shape[1], generator=torch.Generator().manual_seed(1))
        expected = layer.base_layer(x) + 6.0 / 2 * x @ a.T @ b.T
        torch.testing.assert_close(layer(x), expected)
    assert a.shape[0] == b.shape[1] == 2
    assert not torch.allclose(logits(copy), logits(subject))


@every_model
def test_adapters_alone_are_trained(name: str) -> None:
    copy = lora.adapted(SUBJECTS[name](), rank=2, alpha=4.0, seed=1)
    trained = lora.trained(copy)
    assert len(trained) == 2 * len(lora.linear_layers(SUBJECTS[name]()))
    assert all(".lora_A." in path or ".lora_B." in path for path in trained)


def test_the_subject_and_torchs_generator_stay_as_they_were(
    assert_untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    subject = gpt2()
    before = torch.random.get_rng_state()
    with assert_untouched(subject.model):
        first, second, other = (lora.adapted(subject, 2, 4.0, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, parameter in lora.trained(first).items():
        assert torch.equal(parameter, lora.trained(second)[name])
        assert "lora_B" in name or not torch.equal(parameter, lora.trained(other)[name])


def test_without_peft_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(probekit.UsageError, match=r"Something needs the package peft.*pip install 'probekit\[lora\]'"):
        lora.check(gpt2(), "Something")
