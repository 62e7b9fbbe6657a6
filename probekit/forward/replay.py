"""Replay: the way from the embeddings to a block, without what the model does before its first block.

A forward pass is traced as the blocks saw it; where it is a plain chain of blocks after `h_0 = e + c`, with arguments
that do not depend on `e`, calling the blocks with the same arguments gives the same bits and leaves out the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import nn

from probekit.forward.compiled import Block, CompiledBlocks
from probekit.forward.hooks import hooks_of
from probekit.forward.sites import read


class Route:
    """The way from the embeddings to the site, without what the model does before its first block.

    `h_0 = e + c` and `h_{i+1} = block_i(h_i, …)`, where `c`, such as the positions, and the other arguments are those
    that the model itself gave for this shape. Blocks are called as modules: hooks on and inside them act.
    """

    def __init__(self, model: nn.Module, trace: Trace, shift: torch.Tensor, given: Sequence[torch.Tensor]) -> None:
        self._calls = trace.calls
        self._shift = shift
        self._shifts = bool(shift.any())
        self._config = getattr(model, "config", None)
        self._left_out = list(trace.left_out)
        self._hooks = [hooks for module in self._left_out for hooks in hooks_of(module)]
        arguments = [tensor for call in trace.calls for tensor in call.tensors()]
        self._given = list({id(tensor): tensor for tensor in (*given, *arguments)}.values())
        self._recorded = self._state()
        self._model = model
        self._plain: list[nn.Module] = [call.block for call in trace.calls]
        self._compiled: CompiledBlocks | None = None

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        # Without gradients, blocks would have to be compiled again, for a call or two.
        if self._compiled is not None and embeddings.requires_grad and torch.is_grad_enabled():
            return self._through(embeddings, self._compiled())
        return self._through(embeddings, self._plain)

    def compile(self, embeddings: torch.Tensor) -> None:
        """Compile the blocks. Raises ModelError if that does not work."""
        compiled = CompiledBlocks(self._model, self._plain)
        compiled.check(self._through, embeddings, type(self._model).__name__)
        self._compiled = compiled

    def entered(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`h_0`."""
        hidden = embeddings.to(self._shift.device, self._shift.dtype)
        return hidden + self._shift if self._shifts else hidden.clone()

    def onwards(self, hidden: torch.Tensor, passed: Route | None = None) -> torch.Tensor:
        """From where another route ends, which this one goes on from, to the site; from `h_0` without another."""
        first = len(passed._calls) if passed else 0
        return _called(self._plain[first:], self._calls[first:], hidden)

    def goes_on_from(self, other: Route) -> bool:
        """Whether this route calls the other's blocks first, and then at least one more."""
        blocks = [call.block for call in other._calls]
        return len(self._calls) > len(blocks) and all(
            call.block is block for call, block in zip(self._calls, blocks, strict=False)
        )

    def _through(self, embeddings: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
        return _called(blocks, self._calls, self.entered(embeddings))

    def is_open(self) -> bool:
        """Whether what is left out has no hooks and is as it was, its weights included, and so are the arguments."""
        return not any(self._hooks) and self._state() == self._recorded

    def _state(self) -> tuple[Any, ...]:
        tensors = [*self._given]
        for module in self._left_out:
            tensors += [tensor for tensor in module._parameters.values() if tensor is not None]
            tensors += [tensor for tensor in module._buffers.values() if tensor is not None]
        return (
            # It decides which mask the blocks need.
            getattr(self._config, "_attn_implementation", None),
            # Some libraries replace a module's `forward` where others would use a hook.
            [vars(module).get("forward") for module in self._left_out],
            [(id(each), each.data_ptr(), 0 if each.is_inference() else each._version) for each in tensors],
        )


@dataclass(frozen=True)
class Call:
    """How the model called a block: all but the hidden state, which comes first."""

    block: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor among the arguments."""
        parts = [*self.arguments, *self.keywords.values()]
        while parts:
            part = parts.pop()
            if isinstance(part, tuple):
                parts += part
            elif isinstance(part, torch.Tensor):
                yield part


@dataclass
class Trace:
    """One forward pass, as the blocks saw it."""

    calls: list[Call] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    left_out: dict[nn.Module, None] = field(default_factory=dict)  # the modules that ran around the blocks

    def enter(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.calls.append(Call(block, arguments[1:], keywords))
        self.hidden.append(arguments[0] if arguments else None)

    def leave(self, _block: nn.Module, _arguments: Any, output: Any) -> None:
        self.outputs.append(read(output, ""))

    def pass_by(self, module: nn.Module, _arguments: Any) -> None:
        self.left_out[module] = None

    def is_chain(self) -> bool:
        """Whether each block got what the one before returned, and nothing else that depends on the embeddings."""
        linked = all(got is given for got, given in zip(self.hidden[1:], self.outputs, strict=False))
        return linked and not any(tensor.requires_grad for call in self.calls for tensor in call.tensors())

    def has_arguments_of(self, other: Trace) -> bool:
        """Whether another forward pass gave the same blocks the same arguments, hidden states apart."""
        return len(self.calls) == len(other.calls) and all(
            mine.block is theirs.block
            and mine.keywords.keys() == theirs.keywords.keys()
            and _same((mine.arguments, *mine.keywords.values()), (theirs.arguments, *theirs.keywords.values()))
            for mine, theirs in zip(self.calls, other.calls, strict=True)
        )

    def adds(self, embeddings: torch.Tensor, shift: torch.Tensor) -> bool:
        """Whether the first block got the embeddings plus the shift, bit for bit, and its gradient is the identity."""
        hidden = self.hidden[0]
        if not isinstance(hidden, torch.Tensor) or hidden.shape != embeddings.shape or not hidden.requires_grad:
            return False
        slope = torch.linspace(-1, 1, hidden.numel(), device=hidden.device, dtype=hidden.dtype).view_as(hidden)
        (gradient,) = torch.autograd.grad(hidden, embeddings, slope, retain_graph=True)
        shifted = embeddings.to(hidden.device, hidden.dtype) + shift
        return torch.equal(hidden, shifted) and torch.equal(gradient, slope.to(gradient.device, gradient.dtype))


@contextmanager
def traced(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[Trace]:
    """Trace the next forward pass."""
    trace = Trace()
    inside = {part for block in blocks for part in block.modules()}
    handles = []
    try:
        for module in model.modules():
            if module not in inside:
                handles.append(module.register_forward_pre_hook(trace.pass_by))
        for block in blocks:
            handles.append(block.register_forward_pre_hook(trace.enter, with_kwargs=True))
            handles.append(block.register_forward_hook(trace.leave))
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _called(blocks: Sequence[Block], calls: Sequence[Call], hidden: torch.Tensor) -> torch.Tensor:
    """The blocks one after another, each called as the model called it, or the block that it stands for."""
    for block, call in zip(blocks, calls, strict=True):
        hidden = read(block(hidden, *call.arguments, **call.keywords), "")
    return hidden


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same plain values. Anything else, such as a cache, is never the same."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and isinstance(one, NoneType | bool | int | float | str) and one == other
