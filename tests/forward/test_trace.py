"""What somebody leaves on a model: each thing is named, and put back; what cannot be put back is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as everywhere

import probekit
from probekit.forward import Trace, trace

Change = Callable[[Any], object]


def replaced_parameter(model: Any) -> None:
    model.transformer.h[1].ln_1.weight = nn.Parameter(torch.ones(32))


def moved(model: Any) -> None:
    model.transformer.ln_f.weight.data = torch.zeros(32)


def with_gradient(model: Any) -> None:
    model.transformer.wpe.weight.grad = torch.zeros(32, 32)


def replaced_forward(model: Any) -> None:
    model.lm_head.forward = lambda hidden: hidden


def everywhere_hooked(_model: Any) -> None:
    everywhere.register_module_forward_hook(lambda *_: None)


# What is done to a model, and how it is named.
MENDED: dict[str, tuple[Change, str]] = {
    "forward hook": (
        lambda model: model.transformer.h[0].register_forward_hook(lambda *_: None),
        "forward hooks of 'transformer.h.0'",
    ),
    "forward hook that is always called": (
        lambda model: model.register_forward_hook(lambda *_: None, always_call=True),
        "forward hooks of the model itself",
    ),
    "hook before the forward": (
        lambda model: model.transformer.h[2].register_forward_pre_hook(lambda *_: None),
        "forward pre hooks of 'transformer.h.2'",
    ),
    "backward hook": (
        lambda model: model.transformer.h[0].mlp.register_full_backward_hook(lambda *_: None),
        "backward hooks of 'transformer.h.0.mlp'",
    ),
    "hook on a state dict": (
        lambda model: model.register_state_dict_post_hook(lambda *_: None),
        "state dict hooks of the model itself",
    ),
    "hook of every module": (everywhere_hooked, "hooks of every module (forward_hooks)"),
    "replaced module": (
        lambda model: model.transformer.h.__setitem__(1, nn.Identity()),
        "other modules in 'transformer.h'",
    ),
    "added module": (lambda model: model.add_module("more", nn.Identity()), "other modules in the model itself"),
    "replaced parameter": (replaced_parameter, "other parameters in 'transformer.h.1.ln_1'"),
    "replaced forward": (replaced_forward, "another forward of 'lm_head'"),
    "other storage": (moved, "other storage of 'transformer.ln_f.weight'"),
    "training": (lambda model: model.train(), "the training mode of the model itself and"),
    "required gradients": (lambda model: model.requires_grad_(True), "requires_grad of 'transformer.wte.weight' and"),
    "gradient": (with_gradient, "gradients of 'transformer.wpe.weight'"),
    "hook on a gradient": (
        lambda model: model.transformer.wpe.weight.requires_grad_().register_hook(lambda gradient: gradient),
        "hooks on gradients of 'transformer.wpe.weight'",
    ),
}


def filled(model: Any) -> None:
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.add_(1e-3)


def through_data(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.weight.data[3, 4] += 1


def through_numpy(model: Any) -> None:
    model.transformer.h[1].mlp.c_fc.bias.detach().numpy()[7] = 5


def swapped_rows(model: Any) -> None:
    weight = model.transformer.wpe.weight.data
    weight[[0, 1]] = weight[[1, 0]]


WRITTEN: dict[str, tuple[Change, str]] = {
    "in place": (filled, "transformer.h.1.mlp.c_fc.weight"),
    "one figure, through data": (through_data, "transformer.h.1.mlp.c_fc.weight"),
    "one figure, through numpy": (through_numpy, "transformer.h.1.mlp.c_fc.bias"),
    "rows swapped": (swapped_rows, "transformer.wpe.weight"),
}


@pytest.fixture
def model(tiny_gpt2: Callable[..., Path]) -> nn.Module:
    return probekit.load(str(tiny_gpt2())).model


@pytest.mark.parametrize("change", MENDED)
def test_what_is_left_on_a_model_is_named_and_put_back(
    change: str, model: nn.Module, assert_untouched: Callable[[nn.Module], Any]
) -> None:
    do, named = MENDED[change]
    with assert_untouched(model):
        before = Trace(model)
        do(model)
        found, whole = before.put_back()
        assert whole
        assert any(sentence.startswith(named) for sentence in found), found
        assert before.put_back() == ([], True)


@pytest.mark.parametrize("change", WRITTEN)
def test_what_is_written_into_a_weight_is_noticed(change: str, model: nn.Module) -> None:
    do, name = WRITTEN[change]
    before = Trace(model)
    do(model)
    assert before.put_back() == ([f"other figures in '{name}'"], False)


def test_of_large_models_a_few_figures_of_each_weight_are_compared(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "READ_WHOLE", 0)
    before = Trace(model)
    filled(model)
    assert before.put_back() == (["other figures in 'transformer.h.1.mlp.c_fc.weight'"], False)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_in_every_precision_one_changed_figure_is_noticed(dtype: str, tiny_gpt2: Callable[..., Path]) -> None:
    model = probekit.load(str(tiny_gpt2()), dtype=dtype).model
    before = Trace(model)
    assert before.put_back() == ([], True)
    through_data(model)
    assert before.put_back()[1] is False


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_model_that_computes_is_not_taken_for_changed(
    quantization: str, tiny_gpt2: Callable[..., Path]
) -> None:
    subject = probekit.load(str(tiny_gpt2(n_embd=64)), quantization=quantization)
    before = Trace(subject.model)
    ids = torch.tensor([[1, 2, 3]])
    embeddings = subject.embed(ids).requires_grad_()
    subject.layer_map("block.-1")(embeddings).sum().backward()
    subject.capture(ids, ["logits"])
    assert before.put_back() == ([], True)


def test_a_model_on_disk_that_computes_is_not_taken_for_changed(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()), device_map={"": "disk"})
    before = Trace(subject.model)
    subject.capture(torch.tensor([[1, 2, 3]]), ["logits"])
    assert before.put_back() == ([], True)
