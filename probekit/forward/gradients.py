"""Gradients where a model switches them off: some compute blocks under `no_grad`, or inside a reversible function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class GradientsOn(TorchFunctionMode):
    """While open, every torch function records its gradients, whatever `no_grad` a model itself has opened.

    hrm_text runs all but the last of its cycles without gradients, which are then those of a part of the layer map;
    reformer computes its blocks inside an `autograd.Function`, where nothing is recorded. What a model detaches stays
    detached.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


@contextmanager
def noting_off(blocks: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """The blocks that are entered without gradients while open."""
    entered: list[nn.Module] = []

    def note(block: nn.Module, _inputs: Any) -> None:
        if not torch.is_grad_enabled():
            entered.append(block)

    handles = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()
