"""Streamed weights: what waits on the CPU and computes elsewhere, here on the CPU too, through the same hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import probekit
from probekit.models import streaming
from probekit.models.devices import device_of
from probekit.models.loading import state_hash
from probekit_plugins.jacobian import Jacobian
from tests.models.test_loading import FAMILIES, IDS

KINDS = ("int8", "nf4", "fp4", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A folder with a small model of a family."""
    import transformers

    made: dict[str, Path] = {}

    def save(family: str) -> str:
        if family not in made:
            name, sizes = FAMILIES[family]
            kind: Any = getattr(transformers, name)
            made[family] = tmp_path_factory.mktemp("streamed")
            with torch.random.fork_rng():
                torch.manual_seed(0)
                kind(kind.config_class(**sizes)).save_pretrained(made[family])
        return str(made[family])

    return save


def streamed(model: nn.Module) -> nn.Module:
    """Every weight waits on the CPU and is copied for each use."""
    for module in model.modules():
        streaming._attach(module, named=False, resident=False, device=torch.device("cpu"))
    return model


def pair(folder: str, kind: str | None, **options: Any) -> tuple[probekit.Subject, probekit.Subject]:
    resident, other = (probekit.load(folder, quantization=kind, **options) for _ in range(2))
    return resident, probekit.Subject(streamed(other.model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["Wide GPT2", "Wide Llama"])
def test_activations_and_derivatives_are_those_of_the_resident_model(
    folder: Callable[[str], str], family: str, kind: str | None, dtype: str
) -> None:
    resident, other = pair(folder(family), kind, dtype=dtype)
    sites = resident.sites()
    expected, found = resident.capture(IDS, sites), other.capture(IDS, sites)
    assert all(torch.equal(expected[site], found[site]) for site in sites)
    embeddings = (resident.embed(IDS).float() + 0.01).requires_grad_()
    vectors = torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
    for site in ("block.0", "block.-1"):
        results = []
        for subject in (resident, other):
            layer_map = subject.layer_map(site)
            activation = layer_map(embeddings)
            (gradient,) = torch.autograd.grad(activation.float().square().sum(), embeddings)
            jacobian = Jacobian(layer_map, embeddings, torch.ones(1, IDS.shape[1], 1))
            results.append((activation, gradient, jacobian.times(vectors), jacobian.transposed_times(vectors)))
        assert all(torch.equal(*each) for each in zip(*results, strict=True))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of copies that are alive, at each copy."""
    alive = [0]
    seen: list[int] = []
    for kind in (streaming.Streamed, streaming.Quantised):
        original = kind.copy_of

        def counted(self: Any, name: str, weight: nn.Parameter, original: Any = original) -> nn.Parameter:
            copied: nn.Parameter = original(self, name, weight)
            storage = copied.untyped_storage()
            size = storage.nbytes()
            alive[0] += size
            weakref.finalize(storage, lambda: alive.__setitem__(0, alive[0] - size))
            seen.append(alive[0])
            return copied

        monkeypatch.setattr(kind, "copy_of", counted)
    yield seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_holds_the_weights_of_one_layer_at_a_time(
    folder: Callable[[str], str], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, subject = pair(folder("Wide Llama"), kind)
    weights = [part for part in subject.anatomy.blocks[0].parameters() if part.dim() > 1]
    largest = max(weight.untyped_storage().nbytes() for weight in weights)
    layer_map = subject.layer_map("block.-1")
    embeddings = subject.embed(IDS).requires_grad_()
    with counting(monkeypatch) as alive:
        activation = layer_map(embeddings)
        forward = len(alive)
        activation.sum().backward()
    # A layer's weight and bias, and a norm's weight that is fetched while it is still there.
    assert max(alive[1:]) <= 2 * largest
    if kind is not None:
        assert len(alive) > forward, "the backward pass copies them again"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_on_a_streamed_model(folder: Callable[[str], str], kind: str | None) -> None:
    _, subject = pair(folder("Wide GPT2"), kind)
    parameters = {name: id(part) for name, part in subject.model.named_parameters()}
    before = state_hash(subject.model)
    activation = subject.layer_map("block.2")(subject.embed(IDS).requires_grad_())
    activation.sum().backward()
    with pytest.raises(ZeroDivisionError), subject.edit("transformer.h.1.mlp.c_fc", lambda values: values * (1 / 0)):
        subject.capture(IDS, ["logits"])
    assert {name: id(part) for name, part in subject.model.named_parameters()} == parameters
    assert state_hash(subject.model) == before
    expected = probekit.load(folder("Wide GPT2"), quantization=kind).capture(IDS, ["logits"])["logits"]
    assert torch.equal(subject.capture(IDS, ["logits"])["logits"], expected)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_model_is_spread_over_a_device_and_what_waits(folder: Callable[[str], str], kind: str) -> None:
    """As for `cuda:0`, the CPU and disk, with the CPU in the place of the device."""
    resident, other = (probekit.load(folder("Wide Llama"), quantization=kind) for _ in range(2))
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), torch.device("cpu"))
    device_map = {
        **rest,
        "model.layers.0": torch.device("cpu"),
        **{f"model.layers.{index}": "disk" for index in (1, 2, 3)},
    }
    streaming.spread(other.model, device_map)
    hooks = [getattr(part, "_hf_hook", None) for part in other.model.modules()]
    assert sum(isinstance(hook, streaming.Quantised) for hook in hooks) == 3 * 7
    subject = probekit.Subject(other.model)
    assert torch.equal(subject.capture(IDS, ["logits"])["logits"], resident.capture(IDS, ["logits"])["logits"])
    assert other.model.hf_device_map == device_map


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_layer_that_is_moved_takes_its_scales_along(
    folder: Callable[[str], str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a GPU, where torch puts other values into the same parameter: here every move makes copies."""
    model = probekit.load(folder("Wide Llama"), quantization=kind).model
    layer: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    expected = layer(torch.ones(1, 64))
    old = [each.untyped_storage() for each in _scales(layer)]  # held, so that nothing else comes to be there
    before = {each.data_ptr() for each in old}

    def copied(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.detach().clone()

    plain = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", copied)
    streaming._move(layer, torch.device("cpu"), {})
    monkeypatch.setattr(torch.Tensor, "to", plain)
    assert not before & {each.data_ptr() for each in _scales(layer)}
    if kind == "int8":
        assert layer.weight.CB is None
        assert layer.state.CB.data_ptr() == layer.weight.data_ptr()
    assert torch.equal(layer(torch.ones(1, 64)), expected)


def _scales(layer: Any) -> list[torch.Tensor]:
    state = getattr(layer.weight, "quant_state", None)
    scales = [layer.state.SCB] if state is None else [state.absmax, state.code]
    return [layer.weight, *(part for part in scales if part is not None)]


def test_a_part_is_where_the_nearest_part_around_it_is() -> None:
    device_map = {"": "cpu", "h.1": 0, "h.10": "disk", "h.10.norm": 1}
    paths = ("wte", "h.1.mlp.weight", "h.10", "h.10.norm.weight", "h.11.mlp")
    assert [device_of(path, device_map) for path in paths] == ["cpu", 0, "disk", 1, "cpu"]
