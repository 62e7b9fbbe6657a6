"""Gradients where a model switches them off: some compute blocks under `no_grad`, or inside a reversible function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class GradientsOn(TorchFunctionMode):
    """While open, what torch computes records its gradients, whatever `no_grad` a model has opened around its blocks.

    hrm_text runs all but the last of its cycles without gradients, which are then those of a part of the layer map;
    reformer computes its blocks inside an `autograd.Function`, where nothing is recorded. What a model detaches stays
    detached.
    """

    def __enter__(self) -> GradientsOn:
        self._before = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        torch.set_grad_enabled(self._before)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        # Not for this function alone: the next may be a model's own `autograd.Function`, which does not come here.
        torch._C._set_grad_enabled(True)
        return func(*args, **(kwargs or {}))


@contextmanager
def noting_off(blocks: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """The blocks that are entered without gradients while open; what a block switches off inside itself is not seen."""
    entered: list[nn.Module] = []

    def note(block: nn.Module, _inputs: Any) -> None:
        if not torch.is_grad_enabled():
            entered.append(block)

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(note).remove)
        yield entered
