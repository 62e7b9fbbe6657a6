"""Edit: replace an activation by a function of itself while a block is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probekit.errors import UsageError
from probekit.forward.sites import Site

# Whether probekit is in a pass of its own, to find out what a model does: edits are no part of the model.
_looking = ContextVar("looking", default=False)


@contextmanager
def unedited() -> Iterator[None]:
    """While open, no edit acts."""
    before = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(before)


@contextmanager
def edited(site: Site, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While open, the site's activation `a` is `function(a)`, in every forward of the model.

    The function gets a copy, so that writing into it changes nothing but what it returns. Raises UsageError, from the
    forward, if it returns another shape than it got.
    """
    handle = site.module.register_forward_hook(_Edit(site, function))
    try:
        yield
    finally:
        handle.remove()


def is_edited(model: nn.Module) -> bool:
    """Whether an edit acts in this model's forwards."""
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return not _looking.get() and any(isinstance(hook, _Edit) for hook in hooks)


@dataclass(frozen=True)
class _Edit:
    """The hook of an edit."""

    site: Site
    function: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        if _looking.get():
            return None
        activation = self.site.read(output)
        value = self.function(activation.clone())
        if not isinstance(value, torch.Tensor) or value.shape != activation.shape:
            got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise UsageError(
                f"An edit of '{self.site.name}' returned {got}; expected a tensor of {tuple(activation.shape)}."
            )
        return self.site.write(output, value.to(activation.device, activation.dtype))
