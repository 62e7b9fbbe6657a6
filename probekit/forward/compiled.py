"""Blocks that torch.compile has compiled, beside the model and not in it, for steps that are repeated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from probekit.errors import ModelError, out_of_memory
from probekit.forward.hooks import HookWatch

Block = Callable[..., Any]
Way = Callable[[torch.Tensor, Sequence[Block]], torch.Tensor]
"""Embeddings and blocks → the activation after the last of them."""


class CompiledBlocks:
    """Blocks and their compiled forms, which compute the same but for rounding, first derivatives included.

    A compiled block runs without its hooks, so that it is called only while there are none on the model. Source:
    `torch.compile`, one block at a time (regional compilation): blocks of one shape are compiled once.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        self._plain = list(blocks)
        self._compiled: list[Block] = []
        self._hooks = HookWatch(model)

    def __call__(self) -> Sequence[Block]:
        """The blocks to call now."""
        return self._plain if self._hooks.finds() else self._compiled

    def check(self, way: Way, embeddings: torch.Tensor, kind: str) -> None:
        """Compile, and compare activation and gradient with those of the blocks as they are.

        Raises ModelError if torch cannot compile them, or if what it makes of them is something else.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of a compiler are for its own authors
                # For one shape each time: a descent has one.
                self._compiled = [torch.compile(block, dynamic=False) for block in self._plain]
                found = _with_gradient(lambda inputs: way(inputs, self._compiled), embeddings)
        except Exception as error:  # of torch's compilers, which raise what they like
            if out_of_memory(error):
                raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"torch.compile does not take the blocks of {kind} here ({first}); leave out --compile."
            ) from error
        wanted = _with_gradient(lambda inputs: way(inputs, self._plain), embeddings)
        for mine, theirs in zip(found, wanted, strict=True):
            if not bool(torch.isfinite(theirs).all()):
                continue  # there is a better sentence on that
            apart, size = (mine.double() - theirs.double()).norm(), theirs.double().norm()
            precision = torch.finfo(theirs.dtype).eps ** 0.5
            if not bool(apart <= precision * size):
                raise ModelError(
                    f"torch.compile makes something else of the blocks of {kind}: it is {float(apart / size):.1g} from "
                    "what they give, relatively. Leave out --compile."
                )


def _with_gradient(way: Callable[[torch.Tensor], torch.Tensor], embeddings: torch.Tensor) -> list[torch.Tensor]:
    leaf = embeddings.detach().clone().requires_grad_()
    with torch.enable_grad():
        activation = way(leaf)
    slope = torch.linspace(-1, 1, activation.numel(), device=activation.device, dtype=activation.dtype)
    (gradient,) = torch.autograd.grad(activation, leaf, slope.view_as(activation))
    return [activation.detach(), gradient]
