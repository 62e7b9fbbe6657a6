"""Whether a model is what it was before somebody had it, and putting it back as far as that is possible.

Hooks, replaced forwards, modules, parameters and their storage, flags and gradients are remembered as they are, which
costs no copy, and put back. What is written into a weight in place is noticed and cannot be put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as everywhere

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
GLOBAL_HOOKS = tuple(name for name in vars(everywhere) if name.startswith("_global_") and name.endswith("_hooks"))

# Weights of so many bytes are read whole. Of more, a few figures of each: pages of a checkpoint that is mapped into
# memory, and that no pass has needed, would be read from disk for it.
READ_WHOLE = 2**30
FIGURES = 16


class Trace:
    """A model as it is now, to compare it with what it is later."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._parts = {
            name: {kind: dict(getattr(part, kind)) for kind in (*HOOKS, "_modules", "_parameters", "_buffers")}
            for name, part in self._modules.items()
        }
        self._forwards = {name: vars(part).get("forward") for name, part in self._modules.items()}
        self._training = {name: part.training for name, part in self._modules.items()}
        self._everywhere = {name: dict(getattr(everywhere, name)) for name in GLOBAL_HOOKS}
        self._weights = {name: _Weight(weight) for name, weight in model.named_parameters()}
        self._buffers = {name: _Weight(buffer) for name, buffer in _saved_buffers(self._modules)}
        size = sum(weight.bytes for weight in (*self._weights.values(), *self._buffers.values()))
        self._whole = size <= READ_WHOLE
        self._sums = self._read()

    def _read(self) -> dict[str, torch.Tensor]:
        weights = {**self._weights, **self._buffers}
        return {name: found for name, weight in weights.items() if (found := weight.sums(self._whole)) is not None}

    def put_back(self) -> tuple[list[str], bool]:
        """What is not as it was, each thing in words, after putting it back; and whether that was possible for all.

        It was not where a weight has been written into: the model has to be loaded again.
        """
        found = [*self._put_back_hooks(), *self._put_back_parts(), *self._put_back_flags()]
        written = list(self._written())
        if written:
            found.append(f"other figures in {_few(written)}")
        return found, not written

    def _put_back_hooks(self) -> Iterator[str]:
        for kind, hooks in self._everywhere.items():
            if _restored(getattr(everywhere, kind), hooks):
                yield f"hooks of every module ({kind.removeprefix('_global_')})"
        for kind in HOOKS:
            modules = self._modules.items()
            changed = [name for name, part in modules if _restored(getattr(part, kind), self._parts[name][kind])]
            if changed:
                yield f"{kind.strip('_').replace('_', ' ')} of {_few(changed)}"

    def _put_back_parts(self) -> Iterator[str]:
        for kind, word in (("_modules", "modules"), ("_parameters", "parameters")):
            owners = self._modules.items()
            changed = [name for name, part in owners if _restored(getattr(part, kind), self._parts[name][kind])]
            if changed:
                yield f"other {word} in {_few(changed)}"
        changed = []
        for name, part in self._modules.items():
            if vars(part).get("forward") is not self._forwards[name]:
                changed.append(name)
                if "forward" in vars(part):
                    del part.forward
                if self._forwards[name] is not None:
                    part.forward = self._forwards[name]
        if changed:
            yield f"another forward of {_few(changed)}"
        moved = [name for name, weight in {**self._weights, **self._buffers}.items() if weight.put_back_storage()]
        if moved:
            yield f"other storage of {_few(moved)}"

    def _put_back_flags(self) -> Iterator[str]:
        changed = [name for name, part in self._modules.items() if part.training != self._training[name]]
        for name in changed:
            self._modules[name].training = self._training[name]
        if changed:
            yield f"the training mode of {_few(changed)}"
        hooked = [name for name, weight in self._weights.items() if weight.put_back_hooks()]
        if hooked:
            yield f"hooks on gradients of {_few(hooked)}"
        flagged = [name for name, weight in self._weights.items() if weight.put_back_flag()]
        if flagged:
            yield f"requires_grad of {_few(flagged)}"
        graded = [name for name, weight in self._weights.items() if weight.put_back_gradient()]
        if graded:
            yield f"gradients of {_few(graded)}"

    def _written(self) -> Iterator[str]:
        now = self._read()
        for name, was in self._sums.items():
            if name not in now or not torch.equal(was, now[name]):
                yield name


class _Weight:
    """A parameter or buffer: the tensor itself, its storage, its flags and its gradient."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._data = tensor.data
        self._requires_grad = tensor.requires_grad
        self._gradient = tensor.grad
        self._hooks = dict(tensor._backward_hooks or {})
        self.bytes = 0 if tensor.is_meta else tensor.numel() * tensor.element_size()

    def put_back_storage(self) -> bool:
        """Whether it was elsewhere. Weights without storage, which an offload keeps on disk, are nowhere."""
        same = self._tensor.is_meta == self._data.is_meta
        same = same and (self._tensor.is_meta or self._tensor.data_ptr() == self._data.data_ptr())
        if not same:
            self._tensor.data = self._data
        return not same

    def put_back_flag(self) -> bool:
        changed = self._tensor.requires_grad != self._requires_grad
        self._tensor.requires_grad_(self._requires_grad)
        return changed

    def put_back_hooks(self) -> bool:
        """Whether hooks on its gradient were not as they were."""
        now = self._tensor._backward_hooks
        return now is not None and _restored(now, self._hooks)

    def put_back_gradient(self) -> bool:
        changed = self._tensor.grad is not self._gradient
        self._tensor.grad = self._gradient
        return changed

    def sums(self, whole: bool) -> torch.Tensor | None:
        """The sum of all bits, in 64 of them at a time and row by row, or a few of the figures; None for weights that
        are not in memory.
        """
        if self._data.is_meta or self._data.numel() == 0:
            return None
        flat = self._data.flatten()
        if not whole:
            chosen = torch.linspace(0, len(flat) - 1, min(FIGURES, len(flat)), dtype=torch.float64).long()
            return flat[chosen.to(flat.device)].cpu().view(torch.uint8)
        rows = self._data.shape[0] if self._data.dim() > 1 else 1
        try:  # 40 times as fast as bit by bit, but for tensors of odd sizes and places in memory
            return flat.view(torch.int64).view(rows, -1).sum(1).cpu()
        except RuntimeError:
            return flat.view(torch.uint8).view(rows, -1).sum(1, dtype=torch.int64).cpu()


def _saved_buffers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers that a checkpoint holds: others a forward pass may make anew, such as a rotary embedding's."""
    for owner, part in modules.items():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield f"{owner}.{name}", buffer


def _restored(now: dict[Any, Any], was: Mapping[Any, Any]) -> bool:
    """Whether a dict had to be put back, which holds the same objects in the same order otherwise."""
    same = list(now) == list(was) and all(now[key] is was[key] or _nowhere(now[key], was[key]) for key in was)
    if not same:
        now.clear()
        now.update(was)
    return not same


def _nowhere(now: Any, was: Any) -> bool:
    """Whether both are weights without storage: an offload makes them anew after each pass."""
    return isinstance(now, torch.Tensor) and isinstance(was, torch.Tensor) and now.is_meta and was.is_meta


def _few(names: list[str]) -> str:
    """Some names in words: the first, and how many more."""
    first = f"'{names[0]}'" if names[0] else "the model itself"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
