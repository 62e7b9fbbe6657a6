"""Offloaded weights: a gradient goes through them without all of them in memory.

accelerate brings a module's weights to the device for its forward and drops them after it. Autograd would keep each of
them for the backward pass, so that all blocks are in memory at its beginning. Here it keeps the name of a weight
instead, and the backward pass fetches it again: one at a time, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils.modeling import named_module_tensors
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from probekit.models.devices import as_device, offloading


@dataclass(frozen=True)
class Kept:
    """A weight, or a view of one, in place of its values."""

    hook: AlignDevicesHook
    name: str
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def fetched(self) -> torch.Tensor:
        """The values, as they were in the forward pass."""
        weight: torch.Tensor = self.hook.weights_map[self.name].to(as_device(self.hook.execution_device), self.dtype)
        return weight.detach().as_strided(self.size, self.stride, weight.storage_offset() + self.offset)


class Offloaded:
    """The modules of a model whose weights are in memory only while they run; none in most models."""

    def __init__(self, model: nn.Module) -> None:
        self._hooks = {module: hook for module in model.modules() if (hook := offloading(module)) is not None}

    def __bool__(self) -> bool:
        return bool(self._hooks)

    @contextmanager
    def passing(self, gradients: bool) -> Iterator[None]:
        """Around one forward pass, which may end early: weights of what it has interrupted are dropped as well.

        With `gradients`, what autograd saves of the weights is fetched again when it is needed.
        """
        running: list[nn.Module] = []

        def enter(module: nn.Module, _inputs: Any) -> None:
            if module in self._hooks:
                running.append(module)

        def leave(module: nn.Module, _inputs: Any, _output: Any) -> None:
            if module in self._hooks:
                while running and running.pop() is not module:
                    pass

        with ExitStack() as hooks:
            if self._hooks:  # two hooks for all modules: two on each of hundreds take longer than a small model
                hooks.callback(register_module_forward_pre_hook(enter).remove)
                hooks.callback(register_module_forward_hook(leave).remove)
                hooks.callback(self._drop, running)
            if gradients and self._hooks:
                hooks.enter_context(saved_tensors_hooks(self._keeping(running), _fetched))
            yield

    def _drop(self, running: list[nn.Module]) -> None:
        for module in reversed(running):
            hook = self._hooks[module]
            if any(not weight.is_meta and weight is not hook.weights_map[name] for name, weight in _own(module, hook)):
                hook.post_forward(module, ())

    def _keeping(self, running: list[nn.Module]) -> Callable[[torch.Tensor], torch.Tensor | Kept]:
        def keep(tensor: torch.Tensor) -> torch.Tensor | Kept:
            for module in reversed(running):
                hook = self._hooks[module]
                for name, weight in _own(module, hook):
                    if _views(tensor, weight):
                        offset = int(tensor.storage_offset() - weight.storage_offset())
                        return Kept(hook, name, tensor.dtype, tensor.size(), tensor.stride(), offset)
            return tensor

        return keep


def _own(module: nn.Module, hook: AlignDevicesHook) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that a module's hook brings and drops, as it finds them itself."""
    found: Iterator[tuple[str, torch.Tensor]] = named_module_tensors(
        module, include_buffers=hook.offload_buffers, recurse=hook.place_submodules, remove_non_persistent=True
    )
    return found


def _fetched(kept: torch.Tensor | Kept) -> torch.Tensor:
    return kept.fetched() if isinstance(kept, Kept) else kept


def _views(tensor: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a tensor is a weight, or a view of it."""
    alike = tensor.dtype == weight.dtype and tensor.device == weight.device and not tensor.is_meta
    return alike and tensor.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
