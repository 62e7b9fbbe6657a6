"""Compiled blocks give what the blocks give but for rounding, and are not called where that would not hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config

import probekit
from probekit.forward import compiled
from tests.forward.test_replay import MODELS, points, value_and_slope

CALLS = 4


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile without its slow last step, from graphs to machine code; the modules that it was given."""
    given: list[Any] = []
    real = torch.compile

    def compile_quickly(module: Any, **settings: Any) -> Any:
        given.append(module)
        return real(module, backend="aot_eager", **settings)

    monkeypatch.setattr(compiled.torch, "compile", compile_quickly)
    return given


def subject_of(name: str, compiles: bool = True) -> probekit.Subject:
    torch.manual_seed(0)
    return probekit.Subject(MODELS[name](), compiled=compiles)


def settled(layer_map: probekit.LayerMap) -> None:
    for at in points(CALLS):
        value_and_slope(layer_map, at)


def compare(one: Callable[[torch.Tensor], torch.Tensor], other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    [at] = points(1)
    for found, wanted in zip(value_and_slope(one, at), value_and_slope(other, at), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_value_and_gradient_are_those_of_the_blocks(name: str, quickly: list[Any]) -> None:
    subject = subject_of(name)
    layer_map = subject.layer_map("block.2", repeated=True)
    settled(layer_map)
    assert quickly == list(subject.anatomy.blocks)
    compare(layer_map, subject_of(name, False).layer_map("block.2"))


def test_machine_code_gives_them_too() -> None:
    subject = subject_of("gpt2")
    layer_map = subject.layer_map("block.0", repeated=True)
    settled(layer_map)
    compare(layer_map, subject_of("gpt2", False).layer_map("block.0"))


def test_a_descent_that_is_resumed_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled from its first step on, wherever that is."""

    def rounding(module: Any, **_settings: Any) -> Callable[..., Any]:
        return lambda hidden, *rest, **more: module(hidden * (1 + 1e-6), *rest, **more)

    monkeypatch.setattr(compiled.torch, "compile", rounding)
    [x], found = points(1), []
    for stops in ([], [3]):
        at, layer_map = x, None
        for step in range(6):
            if layer_map is None or step in stops:
                layer_map = subject_of("gpt2").layer_map("block.1", repeated=True)
            at = at - 0.1 * value_and_slope(layer_map, at)[1]
        found.append(at)
    assert torch.equal(*found)


def test_nothing_is_compiled_unless_it_is_asked_for(quickly: list[Any]) -> None:
    settled(subject_of("gpt2").layer_map("block.0"))
    settled(subject_of("gpt2", False).layer_map("block.0", repeated=True))
    assert quickly == []


def test_the_model_is_left_as_it_is(quickly: list[Any]) -> None:
    subject = subject_of("gpt2")
    before = {name: type(module) for name, module in subject.model.named_modules()}
    settled(subject.layer_map("block.1", repeated=True))
    assert quickly
    assert {name: type(module) for name, module in subject.model.named_modules()} == before
    assert all("_compiled_call_impl" not in vars(module) for module in subject.model.modules())


def test_an_edit_inside_a_block_acts(quickly: list[Any]) -> None:
    """Compiled, a block would go on without it."""
    subject = subject_of("gpt2")
    layer_map, plain = subject.layer_map("block.1", repeated=True), subject_of("gpt2", False)
    settled(layer_map)
    with (
        subject.edit("transformer.h.0.mlp", lambda activation: activation * 0),
        plain.edit("transformer.h.0.mlp", lambda activation: activation * 0),
    ):
        compare(layer_map, plain.layer_map("block.1"))
    compare(layer_map, plain.layer_map("block.1"))


def test_a_block_that_cannot_be_compiled_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_more: Any) -> Any:
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(compiled.torch, "compile", lambda module, **_settings: fail)
    with pytest.raises(probekit.ModelError, match=r"does not take the blocks of GPT2LMHeadModel here \(no compiler\)"):
        settled(subject_of("gpt2").layer_map("block.1", repeated=True))


def test_blocks_that_compile_to_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(module: Any, **_settings: Any) -> Callable[..., Any]:
        return lambda hidden, *rest, **more: module(hidden * 1.01, *rest, **more)

    monkeypatch.setattr(compiled.torch, "compile", other)
    with pytest.raises(probekit.ModelError, match="makes something else"):
        settled(subject_of("gpt2").layer_map("block.1", repeated=True))


def test_a_run_compiles_where_it_is_told_to(tmp_path: Path, quickly: list[Any]) -> None:
    GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16).save_pretrained(tmp_path / "model")
    run = functools.partial(
        probekit.run,
        plugins="gradient-inverter",
        input_ids=[[3, 4, 5]],
        options={"steps": 5, "restarts": 2, "next_token": False},
    )
    spec = {"name": str(tmp_path / "model"), "weights": "random"}
    plain = run(model=spec, output=tmp_path / "plain").result
    assert quickly == []
    found = run(model={**spec, "compile": True}, output=tmp_path / "compiled").result
    assert quickly
    torch.testing.assert_close(found.tensors["0/block.0/losses"], plain.tensors["0/block.0/losses"], rtol=1e-3, atol=0)
