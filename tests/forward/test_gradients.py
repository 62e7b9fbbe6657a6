"""Layer maps of models that stand in the way of gradients, against central differences of captured activations.

The differences are taken of `subject.capture` with other embeddings put in by `subject.edit`, which makes no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_outputs import CausalLMOutput

import probekit
from probekit.errors import ModelError
from probekit.forward.gradients import GradientsOn, noting_off
from tests.forward.tiny import named

IDS = torch.tensor([[25, 37, 23, 64, 29], [70, 28, 28, 41, 22]])


class WhollyDouble(TorchFunctionMode):
    """While open, what a model computes in float32 whatever its precision is computed in float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        keywords = {name: self.wider(value) for name, value in (kwargs or {}).items()}
        return func(*map(self.wider, args), **keywords)

    @staticmethod
    def wider(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value


def model_of(name: str) -> nn.Module:
    return named(name)


def substituted(subject: probekit.Subject, site: str, embeddings: torch.Tensor) -> torch.Tensor:
    """The captured activation at a site of the prompt with other embeddings, by an edit and not by a layer map."""
    with subject.edit("embedding", lambda _activation: embeddings):
        return subject.capture(IDS, [site])[site]


def assert_gradient_is_the_derivative(
    subject: probekit.Subject,
    site: str,
    step: float,
    tolerance: float,
    values: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """In random directions, from a random direction at the site, against central differences."""
    values = values or partial(substituted, subject, site)
    layer_map = subject.layer_map(site, IDS if subject.conditioned_on_ids else None)
    generator = torch.Generator().manual_seed(1)
    embeddings = subject.embed(IDS)
    at = embeddings.clone().requires_grad_()
    activation = layer_map(at)
    assert torch.equal(activation.detach(), values(embeddings))
    direction = torch.randn(activation.shape, generator=generator, dtype=activation.dtype)
    (gradient,) = torch.autograd.grad((activation * direction).sum(), at)
    for _ in range(3):
        towards = torch.randn(embeddings.shape, generator=generator, dtype=embeddings.dtype)
        rise = (values(embeddings + step * towards) - values(embeddings - step * towards)) * direction
        found, expected = (gradient * towards).sum(), rise.sum() / (2 * step)
        # In a random direction a gradient rises by about its own norm.
        assert float((found - expected).abs()) <= tolerance * float(gradient.norm()), site
    assert float(gradient.norm()) > 0


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("gemma3n_text", "block.0"),
        ("gemma3n_text", "block.-1"),
        ("xlnet", "block.0"),
        ("xlnet", "block.-1"),
        ("xlnet", "logits"),
        ("cpmant", "block.0"),
        ("cpmant", "block.-1"),
        ("prophetnet", "block.-1"),
        ("hrm_text", "block.0"),
        ("hrm_text", "block.3"),
        ("hrm_text", "block.-1"),
        ("hrm_text", "logits"),
        ("reformer", "block.0"),
    ],
)
def test_a_gradient_is_the_derivative_in_float64(name: str, site: str) -> None:
    with WhollyDouble():
        subject = probekit.Subject(model_of(name).double())
        assert subject.conditioned_on_ids == (name in ("gemma3n_text", "cpmant"))
        values = None
        if name == "reformer":  # its embedding is run on more positions than the prompt's
            values = partial(without_gradient, subject.layer_map(site))
        subject.axes(site)  # measured now, and not under the edit that puts embeddings in
        assert_gradient_is_the_derivative(subject, site, step=1e-6, tolerance=1e-7, values=values)


def without_gradient(layer_map: probekit.LayerMap, embeddings: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer_map(embeddings)


@pytest.mark.parametrize("name", ["deepseek_v4", "qwen4_exp"])
def test_a_gradient_is_the_derivative_where_a_model_computes_in_float32_only(name: str) -> None:
    """Both choose among experts and positions, so that a larger step would cross from one choice to another."""
    for site in ("block.0", "block.1"):
        assert_gradient_is_the_derivative(probekit.Subject(model_of(name)), site, step=1e-4, tolerance=1e-3)


# --- models that switch gradients off ---------------------------------------------------------------------------------


@contextmanager
def read_by_hand(subject: probekit.Subject, site: str, embeddings: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Hooks of the test's own that put embeddings in, and keep what the site's block returned the first time."""
    seen: list[torch.Tensor] = []
    block = subject.anatomy.blocks[int(site.removeprefix("block."))]

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output if isinstance(output, torch.Tensor) else output[0])

    handles = [
        subject.anatomy.embedding.register_forward_hook(lambda *_: embeddings),
        block.register_forward_hook(keep),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_autograd_alone_gives_another_gradient_where_a_model_runs_cycles_without_gradients() -> None:
    """What hrm_text's own `no_grad` leaves out of autograd's gradient; a layer map leaves nothing out."""
    with WhollyDouble():
        subject = probekit.Subject(model_of("hrm_text").double())
        site = "block.3"  # the first block of the second stack, behind all cycles of the first
        embeddings = subject.embed(IDS)
        generator = torch.Generator().manual_seed(1)
        direction, towards = torch.randn(2, *embeddings.shape, generator=generator, dtype=torch.float64)

        at = embeddings.clone().requires_grad_()
        with read_by_hand(subject, site, at) as seen:
            subject.model(input_ids=IDS, use_cache=False)
        (alone,) = torch.autograd.grad((seen[0] * direction).sum(), at)
        at = embeddings.clone().requires_grad_()
        activation = subject.layer_map(site)(at)
        (gradient,) = torch.autograd.grad((activation * direction).sum(), at)
        rise = substituted(subject, site, embeddings + 1e-6 * towards) - substituted(
            subject, site, embeddings - 1e-6 * towards
        )
        expected = (rise * direction).sum() / 2e-6

    assert torch.equal(seen[0], activation)  # the same function
    torch.testing.assert_close((gradient * towards).sum(), expected, rtol=1e-6, atol=0)
    assert float(((alone * towards).sum() - expected).abs()) > 0.01 * float(expected.abs())
    assert float((alone - gradient).norm()) > 0.05 * float(gradient.norm())


@pytest.mark.parametrize("site", ["block.0", "block.3", "block.-1", "logits"])
def test_every_call_of_a_descent_has_the_whole_gradient(site: str) -> None:
    subject = probekit.Subject(model_of("hrm_text"))
    layer_map = subject.layer_map(site)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        at = torch.randn(2, 5, 32, generator=generator).requires_grad_()
        activation = layer_map(at)
        direction = torch.randn(activation.shape, generator=generator)
        (gradient,) = torch.autograd.grad((activation * direction).sum(), at)
        with GradientsOn():
            fresh = subject.layer_map(site)(at)
            (expected,) = torch.autograd.grad((fresh * direction).sum(), at)
        assert torch.equal(activation, fresh)
        assert torch.equal(gradient, expected)
        with torch.no_grad():
            values = layer_map(at)
        assert torch.equal(values, activation)
        assert not values.requires_grad


def test_gradients_that_are_on_do_not_reach_the_parameters_and_are_off_again_behind() -> None:
    model = model_of("hrm_text").requires_grad_(True)
    subject = probekit.Subject(model)
    at = subject.embed(IDS).requires_grad_()
    subject.layer_map("block.-1")(at).sum().backward()
    assert at.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert not (at * 2).requires_grad
    assert (at * 2).requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Block(nn.Module):
    """`a + tanh(W a)`, or what it gets, detached."""

    def __init__(self, detaches: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.detaches = detaches

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.detach() if self.detaches else states + torch.tanh(self.linear(states))


class Hindering(nn.Module):
    """A causal language model (of one token's memory) that stands in the way of gradients."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=2, vocab_size=80, pad_token_id=None)
        self.way = way
        self.words = nn.Embedding(80, 8)
        self.layers = nn.ModuleList([Block(detaches=way == "detached block"), Block()])
        self.head = nn.Linear(8, 80, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids)
        if self.way == "detached embeddings":
            states = states.detach()
        if self.way == "data of embeddings":
            states = states.data
        for block in self.layers:
            off = self.way == "all blocks off" or (self.way == "first block off" and block is self.layers[0])
            with torch.no_grad() if off else nullcontext():
                states = block(states)
        return CausalLMOutput(logits=self.head(states))


@pytest.mark.parametrize("way", ["first block off", "all blocks off"])
@pytest.mark.parametrize("site", ["block.0", "block.1", "logits"])
def test_blocks_under_no_grad_are_differentiated_through(way: str, site: str) -> None:
    subject = probekit.Subject(Hindering(way).double())
    assert_gradient_is_the_derivative(subject, site, step=1e-6, tolerance=1e-8)


@pytest.mark.parametrize("way", ["detached embeddings", "data of embeddings"])
@pytest.mark.parametrize("site", ["block.0", "block.1", "logits"])
def test_where_the_model_detaches_its_embeddings_a_sentence_says_so(way: str, site: str) -> None:
    subject = probekit.Subject(Hindering(way))
    layer_map = subject.layer_map(site)
    for _ in range(3):
        with pytest.raises(ModelError) as raised:
            layer_map(subject.embed(IDS).requires_grad_())
        assert str(raised.value) == (
            f"No gradient goes from the embeddings to the activation at '{site}': it does not depend on them, or the "
            "model or an open edit detaches it. Choose another site, or read values under torch.no_grad()."
        )
    # Its values are there, and so are the gradients before.
    assert torch.equal(layer_map(subject.embed(IDS)), subject.capture(IDS, [site])[site])
    assert subject.layer_map("embedding")(subject.embed(IDS).requires_grad_()).requires_grad


def test_where_a_block_detaches_what_it_gets_the_sites_before_it_have_gradients() -> None:
    subject = probekit.Subject(Hindering("detached block"))
    embeddings = subject.embed(IDS).requires_grad_()
    for site in ("block.0", "block.1"):
        with pytest.raises(ModelError, match=rf"No gradient goes from the embeddings to the activation at '{site}'"):
            subject.layer_map(site)(embeddings)
    (gradient,) = torch.autograd.grad(subject.layer_map("embedding")(embeddings).sum(), embeddings)
    assert torch.equal(gradient, torch.ones_like(embeddings))


@pytest.mark.parametrize("site", ["norm", "logits"])
def test_a_backward_pass_of_the_models_own_that_refuses_is_a_sentence(site: str) -> None:
    subject = probekit.Subject(model_of("reformer"))
    with pytest.raises(ModelError) as raised:
        subject.layer_map(site)(subject.embed(IDS).requires_grad_())
    sentence = str(raised.value)
    assert sentence.startswith("ReformerModelWithLMHead computes gradients of its own and refuses them in eval mode")
    assert f"at '{site}'" in sentence
    assert sentence.endswith("choose the site of a block.")
    # Its values are there without gradients.
    with torch.no_grad():
        activation = subject.layer_map(site)(subject.embed(IDS))
    torch.testing.assert_close(activation, subject.capture(IDS, [site])[site])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


# --- the two parts ---------------------------------------------------------------------------------------------------


def test_while_gradients_are_on_no_grad_does_nothing_and_detach_what_it_says() -> None:
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    with GradientsOn(), torch.no_grad():
        product = (weights * torch.tensor([3.0, 5.0])).sum()
        apart = weights.detach() * 2
    assert torch.autograd.grad(product, weights)[0].tolist() == [3.0, 5.0]
    assert not apart.requires_grad
    with torch.no_grad():
        assert not (weights * 2).requires_grad


def test_gradients_come_off_when_what_is_inside_raises() -> None:
    with pytest.raises(KeyboardInterrupt), GradientsOn():
        raise KeyboardInterrupt
    weights = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not (weights * 2).requires_grad


def test_blocks_are_noted_that_are_entered_without_gradients() -> None:
    blocks = [nn.Linear(2, 2) for _ in range(3)]
    with noting_off(blocks) as entered:
        blocks[0](torch.ones(2))
        with torch.no_grad():
            blocks[2](torch.ones(2))
        assert entered == [blocks[2]]
    with torch.no_grad():
        blocks[1](torch.ones(2))
    assert entered == [blocks[2]]
    assert not any(block._forward_pre_hooks for block in blocks)
    with pytest.raises(KeyboardInterrupt), noting_off(blocks):
        raise KeyboardInterrupt
    assert not any(block._forward_pre_hooks for block in blocks)
