"""The head: applied where it reads the final norm of the last block and nothing else, else refused in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

import probekit
from probekit.errors import ModelError, UsageError
from tests.forward.tiny import named

IDS = torch.tensor([[25, 37, 23, 64, 29], [70, 28, 28, 41, 22]])


@cache
def made(name: str) -> nn.Module:
    return named(name)


def subject_of(name: str) -> probekit.Subject:
    return probekit.Subject(copy.deepcopy(made(name)))


# --- models of transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere", "opt", "mamba", "xlnet"])
def test_the_head_on_the_last_block_has_the_models_own_best_tokens(name: str) -> None:
    """Cohere scales its logits and gemma2 caps them, which keeps their order; the others leave them as they are."""
    subject = subject_of(name)
    assert subject.head_width == 32
    captured = subject.capture(IDS, ["block.-1", "logits"])
    with torch.no_grad():
        logits = subject.unembed(captured["block.-1"])
    assert logits.shape == captured["logits"].shape
    assert torch.equal(logits.argsort(-1)[..., -5:], captured["logits"].argsort(-1)[..., -5:])
    if name not in ("gemma2", "cohere"):
        torch.testing.assert_close(logits, captured["logits"])
    else:
        assert not torch.allclose(logits, captured["logits"])


def test_what_is_left_out_behind_the_head_is_a_cap_and_a_scale() -> None:
    subject = subject_of("gemma2")
    captured = subject.capture(IDS, ["block.-1", "logits"])
    cap = subject.model.config.final_logit_softcapping
    with torch.no_grad():
        logits = subject.unembed(captured["block.-1"])
    torch.testing.assert_close(torch.tanh(logits / cap) * cap, captured["logits"])
    subject = subject_of("cohere")
    captured = subject.capture(IDS, ["block.-1", "logits"])
    with torch.no_grad():
        logits = subject.unembed(captured["block.-1"])
    torch.testing.assert_close(logits * subject.model.config.logit_scale, captured["logits"])


@pytest.mark.parametrize("name", ["bert", "modernbert-decoder", "minicpm3", "gemma3n_text", "deepseek_v4"])
def test_a_model_that_does_more_before_its_head_than_a_norm_is_refused_in_a_sentence(name: str) -> None:
    """A transform, a scale, and a sum over streams."""
    subject = subject_of(name)
    assert subject.anatomy.unembedding is not None
    assert subject.head_width is None
    for width in (32, 128, 7):
        with pytest.raises(ModelError) as raised:
            subject.unembed(torch.zeros(1, 2, width))
        assert str(raised.value) == (
            f"{type(subject.model).__name__} does more to its activations than a norm before the head reads them; use "
            "the site 'logits'."
        )
    # The reference: the head on the norm of the last block gives something else.
    captured = subject.capture(IDS, ["block.-1", "logits"])
    anatomy = subject.anatomy
    states = captured["block.-1"][..., :32]
    with torch.no_grad():
        by_hand = anatomy.unembedding(states if anatomy.norm is None else anatomy.norm(states))
    assert not torch.allclose(by_hand, captured["logits"], rtol=0.01)


def test_an_activation_of_another_width_is_refused_with_both_widths() -> None:
    with pytest.raises(UsageError, match=r"^The head reads activations of width 32, not 31\.$"):
        subject_of("gpt2").unembed(torch.zeros(1, 2, 31))


def test_asking_leaves_nothing_on_the_model() -> None:
    model = copy.deepcopy(made("gpt2")).train().requires_grad_(True)
    subject = probekit.Subject(model)
    assert subject.head_width == 32
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["transformer", "norm", "block.-1", "logits", "embedding", "transformer.h.2.mlp"])
@pytest.mark.parametrize("change", [lambda a: a * 0, lambda a: a + torch.linspace(0, 1, a.shape[-1])])
def test_asking_while_an_edit_is_open_does_not_spoil_the_answer_behind(
    site: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    subject = subject_of("gpt2")
    with subject.edit(site, change):
        assert subject.head_width in (32, None)
    assert subject.head_width == 32
    captured = subject.capture(IDS, ["block.-1", "logits"])
    with torch.no_grad():
        torch.testing.assert_close(subject.unembed(captured["block.-1"]), captured["logits"])


def test_an_edit_between_the_last_block_and_the_head_is_no_part_of_the_model() -> None:
    for asked_before in (False, True):
        subject = subject_of("gpt2")
        activation = torch.ones(1, 2, 32)
        expected = subject_of("gpt2").unembed(activation)
        if asked_before:
            subject.unembed(activation)
        with subject.edit("transformer", lambda activation: activation.flip(-1)):
            assert torch.equal(subject.unembed(activation), expected)
        assert torch.equal(subject.unembed(activation), expected)


def test_an_edit_that_leaves_nothing_does_not_make_a_head_fit() -> None:
    subject = subject_of("minicpm3")
    with subject.edit("block.-1", lambda activation: activation * 0):
        assert subject.head_width is None
    assert subject.head_width is None


# --- models made by hand ----------------------------------------------------------------------------------------------


class Headed(nn.Module):
    """A causal language model (of one token's memory) with something between its final norm and its head."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=2, vocab_size=11, pad_token_id=None)
        self.words = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.after = nn.LayerNorm(8)
        self.between = between
        self.head = nn.Linear(width, 11, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids)
        for layer in self.layers:
            states = layer(states)
        return CausalLMOutput(logits=self.head(self.between(self.after(states))))


SHORT = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize(
    "between",
    [torch.clone, lambda states: states.contiguous()[:, -2:]],
    ids=["nothing", "only the last positions"],
)
def test_a_head_that_reads_the_norm_is_applied(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    subject = probekit.Subject(Headed(between))
    assert subject.head_width == 8
    captured = subject.capture(SHORT, ["block.-1", "logits"])
    with torch.no_grad():
        own = captured["logits"]
        torch.testing.assert_close(subject.unembed(captured["block.-1"])[:, -own.shape[1] :], own)


@pytest.mark.parametrize(
    "between",
    [
        lambda states: states * 1.1,
        lambda states: states.flip(-1),
        lambda states: states.flip(1),
        lambda states: states.roll(1, 1),
        lambda states: -states,
        torch.tanh,
        torch.zeros_like,
        lambda states: torch.cat([states, states], 1),
        lambda states: states.mean(1),
    ],
    ids=["scale", "other order", "other positions", "shift", "sign", "squash", "nothing of it", "longer", "pooled"],
)
def test_a_head_that_reads_something_else_is_refused(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    subject = probekit.Subject(Headed(between))
    assert subject.head_width is None
    with pytest.raises(ModelError, match=r"^Headed does more to its activations than a norm"):
        subject.unembed(torch.zeros(1, 2, 8))


def test_a_head_of_another_width_is_refused() -> None:
    subject = probekit.Subject(Headed(lambda states: torch.cat([states, states], -1), width=16))
    assert subject.head_width is None
    with pytest.raises(ModelError, match="use the site 'logits'"):
        subject.unembed(torch.zeros(1, 2, 16))


def test_a_model_without_a_head_says_so() -> None:
    subject = probekit.Subject(Headed(torch.clone), anatomy={"unembedding": None})
    assert subject.head_width is None
    with pytest.raises(ModelError, match=r"^Headed has no unembedding\.$"):
        subject.unembed(torch.zeros(1, 2, 8))
