"""Whether anybody has hooks on a model, asked so often that looking at every module would cost too much."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as all_modules
from torch.utils.hooks import RemovableHandle


def hooks_of(module: nn.Module) -> list[Any]:
    """Where a module keeps its hooks, and torch the hooks of all modules."""
    return [
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        all_modules._global_forward_hooks,
        all_modules._global_forward_pre_hooks,
        all_modules._global_backward_hooks,
        all_modules._global_backward_pre_hooks,
    ]


def has_hooks(model: nn.Module) -> bool:
    """Whether there are hooks on the model or in it."""
    return any(any(hooks_of(module)) for module in model.modules())


class HookWatch:
    """Tells whether there are hooks on a model. It looks again only if one has been registered since it found none:
    torch numbers them all, whoever registers them on whatever.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._last = -1

    def finds(self) -> bool:
        """Whether there are any now."""
        if self._last == RemovableHandle.next_id:
            return False
        if has_hooks(self._model):
            return True
        self._last = RemovableHandle.next_id
        return False
