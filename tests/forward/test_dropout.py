"""Layer maps with dropout on: those of a GPT-2 in training, written by hand, and nothing else of a training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BartConfig, BartForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit

Untouched = Callable[[nn.Module], AbstractContextManager[None]]
IDS = torch.tensor([[5, 17, 2, 40], [1, 1, 33, 7]])
HEADS = 2


def fresh(attention: str = "eager", **settings: Any) -> GPT2LMHeadModel:
    """A GPT-2 as its constructor leaves it: in training mode. Each kind of dropout has a rate of its own."""
    torch.manual_seed(0)
    rates = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3} | settings
    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=24, n_layer=3, n_head=HEADS, **rates)
    config._attn_implementation = attention
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases that are not zero, norms that are not one
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert all(module.training for module in model.modules())
    return model


def by_hand(model: GPT2LMHeadModel, embeddings: torch.Tensor, blocks: int) -> torch.Tensor:
    """The first blocks in training, from the weights alone, with masks from torch's default generator."""
    weights, config = model.transformer.state_dict(), model.config
    length, width = embeddings.shape[1:]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    unseen = torch.ones(length, length, dtype=torch.bool).triu(1)
    hidden = functional.dropout(embeddings + weights["wpe.weight"][:length], config.embd_pdrop)
    for block in range(blocks):
        q, k, v = map(heads, linear(norm(hidden, f"h.{block}.ln_1"), f"h.{block}.attn.c_attn").chunk(3, -1))
        scores = (q @ k.mT / (width // HEADS) ** 0.5).masked_fill(unseen, -torch.inf)
        seen = functional.dropout(scores.softmax(-1), config.attn_pdrop) @ v
        mixed = linear(seen.transpose(1, 2).flatten(2), f"h.{block}.attn.c_proj")
        hidden = hidden + functional.dropout(mixed, config.resid_pdrop)
        inner = functional.gelu(linear(norm(hidden, f"h.{block}.ln_2"), f"h.{block}.mlp.c_fc"), approximate="tanh")
        hidden = hidden + functional.dropout(linear(inner, f"h.{block}.mlp.c_proj"), config.resid_pdrop)
    return hidden


def value_and_slope(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> tuple[torch.Tensor, ...]:
    embeddings = at.clone().requires_grad_()
    torch.manual_seed(7)
    activation = function(embeddings)
    slope = torch.linspace(-1, 1, activation.numel()).view_as(activation)
    return activation.detach(), *torch.autograd.grad(activation, embeddings, slope)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("block", [0, 2])
def test_it_is_the_forward_and_the_gradient_of_a_model_in_training(attention: str, block: int) -> None:
    model = fresh(attention)
    subject = probekit.Subject(model)
    at = torch.randn(2, 4, 24)
    found = value_and_slope(subject.layer_map(f"block.{block}", dropout=True), at)
    expected = value_and_slope(lambda embeddings: by_hand(model, embeddings, block + 1), at)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], subject.layer_map(f"block.{block}")(at), rtol=0.1)


@pytest.mark.parametrize("site", ["block.0", "transformer.h.1.mlp", "logits"])
def test_it_has_the_bits_of_the_models_own_training_forward(site: str) -> None:
    model = fresh()
    subject = probekit.Subject(model)
    kept: list[Any] = []
    module = {"block.0": model.transformer.h[0], "transformer.h.1.mlp": model.transformer.h[1].mlp}.get(site, model)
    at = torch.randn(2, 4, 24)
    torch.manual_seed(7)
    handle = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    model.train()(inputs_embeds=at)
    handle.remove()
    plain = kept[0].logits if site == "logits" else kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    torch.manual_seed(7)
    assert torch.equal(subject.layer_map(site, dropout=True)(at), plain)


def test_every_call_of_a_descent_draws_anew_and_the_seed_decides() -> None:
    subject = probekit.Subject(fresh())
    layer_map = subject.layer_map("block.1", dropout=True)
    embeddings = subject.embed(IDS).requires_grad_()
    torch.manual_seed(3)
    drawn = [layer_map(embeddings).detach() for _ in range(6)]  # a map without dropout is replayed from the third on
    assert all(not torch.equal(one, other) for index, one in enumerate(drawn) for other in drawn[:index])
    torch.manual_seed(3)
    assert all(torch.equal(layer_map(embeddings).detach(), before) for before in drawn)


def test_without_dropout_nothing_is_drawn_and_the_bits_are_those_of_eval_mode() -> None:
    model = fresh()
    subject = probekit.Subject(model)
    embeddings = subject.embed(IDS)
    state = torch.get_rng_state()
    layer_map = subject.layer_map("block.2")
    drawn = [layer_map(embeddings.clone().requires_grad_()).detach() for _ in range(4)]
    assert torch.equal(torch.get_rng_state(), state)
    wanted = model.eval()(inputs_embeds=embeddings, output_hidden_states=True).hidden_states[2].detach()
    assert torch.equal(subject.layer_map("block.1")(embeddings), wanted)
    assert all(torch.equal(one, drawn[0]) for one in drawn)


@pytest.mark.parametrize("training", ["wholly", "in part", "not"])
def test_modes_and_flags_are_given_back_after_success_early_stop_and_errors(
    training: str, assert_untouched: Untouched
) -> None:
    model = fresh().train(training != "not")
    if training == "in part":
        model.transformer.h[1].eval()
        model.transformer.wpe.weight.requires_grad_(False)
    subject = probekit.Subject(model)
    embeddings = subject.embed(IDS).requires_grad_()

    def refuse(*_: Any) -> None:
        raise RuntimeError("on purpose")

    with assert_untouched(model):
        subject.layer_map("block.0", dropout=True)(embeddings).sum().backward()
        subject.layer_map("logits", dropout=True)(embeddings).sum().backward()
    with assert_untouched(model), pytest.raises(probekit.UsageError, match="Embeddings have the shape"):
        subject.layer_map("block.1", dropout=True)(embeddings[..., :-1])
    handle = model.transformer.h[1].mlp.register_forward_hook(refuse)
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"):
        subject.layer_map("block.1", dropout=True)(embeddings)
    handle.remove()
    assert [module.training for module in model.modules()] == modes


def test_modules_that_keep_running_statistics_stay_in_eval() -> None:
    """A batch norm and a spectral norm in a block: their buffers are as before, their function that of eval mode."""

    class Normed(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp
            self.norm = nn.BatchNorm1d(24)
            self.mixed = nn.utils.parametrizations.spectral_norm(nn.Linear(24, 24))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            modes.append((self.mlp.training, self.norm.training))
            mixed: torch.Tensor = self.mixed(self.norm(self.mlp(hidden).transpose(1, 2)).transpose(1, 2))
            return mixed

    modes: list[tuple[bool, bool]] = []
    model = fresh()
    model.transformer.h[1].mlp = Normed(model.transformer.h[1].mlp)
    subject = probekit.Subject(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    layer_map = subject.layer_map("block.2", dropout=True)
    modes.clear()
    layer_map(subject.embed(IDS))
    assert modes == [(True, False)]
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # newer transformers rename it
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_checkpoints_has_the_gradient_of_the_masks_that_were_drawn(reentrant: bool) -> None:
    model, plain = fresh(), fresh()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    at = torch.randn(2, 4, 24)
    found = value_and_slope(probekit.Subject(model).layer_map("block.2", dropout=True), at)
    expected = value_and_slope(probekit.Subject(plain).layer_map("block.2", dropout=True), at)
    assert all(map(torch.equal, found, expected))
    assert all(block.gradient_checkpointing for block in model.transformer.h)


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Bart"])
def test_without_rates_dropout_changes_no_bit(name: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 60, "max_position_embeddings": 16}
    model: nn.Module
    if name == "Llama":
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, **sizes)
        )
    elif name == "Bart":
        model = BartForCausalLM(
            BartConfig(
                d_model=24,
                encoder_layers=3,
                decoder_layers=3,
                decoder_attention_heads=2,
                decoder_ffn_dim=32,
                dropout=0.0,
                **sizes,
            )
        )
    else:
        model = fresh(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    subject = probekit.Subject(model)
    at = torch.randn(2, 4, 24)
    found = value_and_slope(subject.layer_map("block.2", dropout=True), at)
    assert all(map(torch.equal, found, value_and_slope(subject.layer_map("block.2"), at)))
