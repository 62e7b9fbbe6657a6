"""A pretend CUDA graph for machines without one: what is captured is a list of operators, and no Python is replayed.

As with a real one, capturing computes nothing that lasts, a replay computes on the same memory as before, and an
operator that would wait for the device, because Python wants to know a figure, is refused while it is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from probekit.forward import graphs

aten = torch.ops.aten
# A real device would have to be waited for, to know a figure or the size of what comes out.
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
}


class Refusing(TorchDispatchMode):
    """Refuses what waits for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


class Recording(Refusing):
    """Notes every operator with its arguments and what it gave; keeps the values that it writes over."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []
        self.made: dict[int, Any] = {}
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_flatten(value)[0]:
                    self._keep(tensor)
        for name, value in kwargs.items():
            if name == "out":
                self._keep(value)
        given = {_storage(each) for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)}
        output = super().__torch_dispatch__(func, types, args, kwargs)
        outputs = [each for each in tree_flatten(output)[0] if isinstance(each, torch.Tensor)]
        for tensor in outputs:
            if _storage(tensor) not in given:
                self.made[_storage(tensor)] = tensor.untyped_storage()  # kept, so that no other is where it is
        self.calls.append((func, args, kwargs, outputs))
        return output

    def _keep(self, tensor: torch.Tensor) -> None:
        where = _storage(tensor)
        if where not in self.made and where not in self.before:
            storage = tensor.untyped_storage()
            self.before[where] = (storage, storage.clone())

    def undo(self) -> None:
        """Everything that was there before as it was."""
        for storage, values in self.before.values():
            storage.copy_(values)


class PretendGraph:
    """Operators, one after another, on the memory that they had when they were captured."""

    captures = 0
    replays = 0

    def capture(self, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        self._recording = Recording()
        try:
            with self._recording:
                output = step()
        finally:
            self._recording.undo()
        type(self).captures += 1
        return output

    def replay(self) -> None:
        type(self).replays += 1
        with torch.no_grad():
            for func, args, kwargs, outputs in self._recording.calls:
                found = [each for each in tree_flatten(func(*args, **kwargs))[0] if isinstance(each, torch.Tensor)]
                for was, now in zip(outputs, found, strict=True):
                    if _storage(was) != _storage(now):
                        was.detach().copy_(now)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)


@contextmanager
def _refused(device: torch.device) -> Iterator[None]:
    with Refusing():
        yield


@pytest.fixture
def pretend_graphs(monkeypatch: pytest.MonkeyPatch) -> type[PretendGraph]:
    """Steps are captured on the CPU, in pretend graphs."""
    import torch.optim.adam as adam

    monkeypatch.setattr(graphs, "new_graph", lambda device: PretendGraph())
    monkeypatch.setattr(graphs, "synchronising_refused", _refused)
    monkeypatch.setattr("probekit.forward.can_be_captured", lambda model: True)
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_args, **_options: ["cpu"])
    PretendGraph.captures = PretendGraph.replays = 0
    return PretendGraph
