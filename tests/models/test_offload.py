"""Offloaded weights: a subject of a model whose weights come and go is the subject of the model itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils.offload import OffloadedWeightsLoader
from torch import nn

import probekit
from probekit.errors import ModelError
from probekit.models.devices import execution_device, is_offloaded
from probekit_plugins.jacobian import Jacobian
from tests.forward.tiny import named

IDS = torch.tensor([[40, 57, 23, 60, 29]])

Offload = Callable[[nn.Module, Path], nn.Module]


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    """All weights on disk, as transformers offloads them."""
    return from_folder(model, folder, {"": "disk"})


def blocks_on_disk(model: nn.Module, folder: Path) -> nn.Module:
    """The blocks on disk, the rest resident."""
    blocks = probekit.Subject(model).anatomy.block_paths
    around = {path.partition(".")[0] for path in blocks}
    rest = [path for path, part in model.named_modules() if not list(part.children())]
    kept = [path for path in rest if not any(path.startswith(f"{block}.") for block in blocks)]
    assert around
    return from_folder(model, folder, {**dict.fromkeys(kept, "cpu"), **dict.fromkeys(blocks, "disk")})


def from_folder(model: Any, folder: Path, device_map: dict[str, str]) -> nn.Module:
    model.save_pretrained(folder)
    kind: Any = type(model)
    placed: nn.Module = kind.from_pretrained(folder, device_map=device_map, offload_folder=str(folder / "offload"))
    return placed.eval()


def in_cpu_memory(model: nn.Module, _folder: Path) -> nn.Module:
    """All weights in a dictionary, and on the device only while they are used: accelerate's CPU offload."""
    offloaded: nn.Module = accelerate.cpu_offload(named_copy(model), execution_device=torch.device("cpu"))
    return offloaded


def named_copy(model: Any) -> nn.Module:
    other: nn.Module = type(model)(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def whole_blocks(model: nn.Module, _folder: Path) -> nn.Module:
    """Each block's weights come all at once, with the block: accelerate's `place_submodules`."""
    other = named_copy(model)
    for block in probekit.Subject(model).anatomy.block_paths:
        hook = AlignDevicesHook(execution_device="cpu", offload=True, place_submodules=True)
        add_hook_to_module(other.get_submodule(block), hook)
    return other


OFFLOADS = [on_disk, blocks_on_disk, in_cpu_memory, whole_blocks]


@pytest.fixture(params=["gpt2", "llama", "mixtral", "gemma2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return named(request.param)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_every_activation_and_gradient_is_that_of_the_resident_model(
    model: nn.Module, offload: Offload, tmp_path: Path
) -> None:
    resident, offloaded = probekit.Subject(model), probekit.Subject(offload(model, tmp_path))
    assert is_offloaded(offloaded.model)
    assert offloaded.device.type == "cpu"
    sites = resident.sites()
    expected, found = resident.capture(IDS, sites), offloaded.capture(IDS, sites)
    assert all(torch.equal(expected[site], found[site]) for site in sites)
    embeddings = (resident.embed(IDS) + 0.1).requires_grad_()
    for site in sites[1:]:
        maps = [resident.layer_map(site), offloaded.layer_map(site)]
        for _ in range(3):  # from the third call on a resident map is replayed
            activations = [layer_map(embeddings) for layer_map in maps]
            gradients = [torch.autograd.grad(each.square().sum(), embeddings)[0] for each in activations]
            assert torch.equal(*activations)
            assert torch.equal(*gradients)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_nothing_is_left_on_an_offloaded_model(model: nn.Module, offload: Offload, tmp_path: Path) -> None:
    offloaded = offload(model.requires_grad_(True), tmp_path)
    before = state(offloaded)
    subject = probekit.Subject(offloaded)
    subject.capture(IDS, ["block.1", "embedding"])
    path = next(
        path for path, part in offloaded.named_modules() if ".1." in path and isinstance(part, nn.LayerNorm | nn.Linear)
    )
    for site in ("block.1", "logits", path):
        activation = subject.layer_map(site)(subject.embed(IDS).requires_grad_())
        activation.sum().backward()
    with pytest.raises(ZeroDivisionError), subject.edit(path, lambda activation: activation * (1 / 0)):
        subject.capture(IDS, ["logits"])
    assert state(offloaded) == before


def state(model: nn.Module) -> dict[str, Any]:
    """Where every parameter is, whether it wants gradients, and how many hooks there are."""
    found: dict[str, Any] = {
        name: (parameter.is_meta, parameter.requires_grad, parameter.grad is None)
        for name, parameter in model.named_parameters(remove_duplicate=False)  # accelerate unties on the way
    }
    return found | {"hooks": sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())}


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of weights that have been fetched and are alive, at each fetch."""
    fetch = OffloadedWeightsLoader.__getitem__
    alive = [0]
    seen: list[int] = []

    def drop(size: int) -> None:
        alive[0] -= size

    def counted(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        tensor: torch.Tensor = fetch(self, key).clone()
        size = tensor.untyped_storage().nbytes()
        alive[0] += size
        weakref.finalize(tensor.untyped_storage(), drop, size)
        seen.append(alive[0])
        return tensor

    with monkeypatch.context() as patched:
        patched.setattr(OffloadedWeightsLoader, "__getitem__", counted)
        yield seen


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_gradient_holds_no_more_weights_than_a_block_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded = probekit.Subject(on_disk(named(name), tmp_path))
    embeddings = offloaded.embed(IDS).requires_grad_()
    layer_map = offloaded.layer_map("block.-1")
    block = offloaded.anatomy.blocks[0]
    size = sum(parameter.numel() * parameter.element_size() for parameter in block.parameters())
    with counting(monkeypatch) as alive:
        activation = layer_map(embeddings)
        forward = len(alive)
        activation.sum().backward()
    assert len(alive) > forward > 0, "the backward pass fetches weights again"
    assert max(alive) <= 1.2 * size


def test_second_derivatives_go_through_offloaded_weights(tmp_path: Path) -> None:
    model = named("llama")
    embeddings = probekit.Subject(model).embed(IDS)
    vectors = torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
    products = []
    for subject in (probekit.Subject(model), probekit.Subject(on_disk(model, tmp_path))):
        jacobian = Jacobian(subject.layer_map("block.-1"), embeddings, torch.ones(1, IDS.shape[1], 1))
        products.append((jacobian.times(vectors), jacobian.transposed_times(vectors)))
    assert all(torch.equal(*pair) for pair in zip(*products, strict=True))


def test_torch_func_is_refused_where_accelerate_cannot_follow_it(tmp_path: Path) -> None:
    subject = probekit.Subject(on_disk(named("gpt2"), tmp_path))
    with pytest.raises(ModelError, match=r"torch\.func does not go through weights that are offloaded"):
        torch.func.vjp(subject.layer_map("block.-1"), subject.embed(IDS))


def test_tensors_do_not_pile_up_over_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offloaded = probekit.Subject(on_disk(named("gpt2"), tmp_path))
    layer_map = offloaded.layer_map("block.-1")
    embeddings = offloaded.embed(IDS).requires_grad_()
    with counting(monkeypatch) as alive:
        for _ in range(20):
            torch.autograd.grad(layer_map(embeddings).sum(), embeddings)
    each = len(alive) // 20
    assert alive[:each] == alive[-each:]


def test_an_offloaded_embedding_is_decoded_with(tmp_path: Path) -> None:
    model = named("gpt2")
    resident, offloaded = probekit.Subject(model), probekit.Subject(on_disk(model, tmp_path))
    assert torch.equal(resident.embedding_matrix, offloaded.embedding_matrix)
    assert torch.equal(resident.decode(resident.embed(IDS)), offloaded.decode(offloaded.embed(IDS)))
    activation = resident.capture(IDS, ["block.-1"])["block.-1"]
    assert torch.equal(resident.unembed(activation), offloaded.unembed(activation))
    assert torch.equal(offloaded.generate(IDS, max_new_tokens=4), resident.generate(IDS, max_new_tokens=4))


def test_where_a_module_computes_is_where_its_inputs_are_brought() -> None:
    layer = nn.Linear(2, 2)
    assert execution_device(layer) == torch.device("cpu")
    add_hook_to_module(layer, AlignDevicesHook(execution_device="meta"))
    assert execution_device(nn.Sequential(layer)) == torch.device("meta")


def test_another_library_s_hook_is_no_offload() -> None:
    layer = nn.Linear(2, 2)
    vars(layer)["_hf_hook"] = object()
    assert not is_offloaded(layer)
