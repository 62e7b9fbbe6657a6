"""Functions that a model computes with and that belong to nobody's module: somebody may have put others in their place.

Those of its classes, of the files that define these, and of torch. A class holds them for every model in the process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import nn

FUNCTIONS = (
    FunctionType,
    BuiltinFunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
    staticmethod,
    classmethod,
    property,
)
OF_TORCH = (torch, torch.Tensor, torch.nn.functional, torch.autograd, torch.linalg, torch.optim)


class Functions:
    """The functions of a model's classes and of torch, as they are now, to compare and put back."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        classes = dict.fromkeys(kind for part in modules for kind in type(part).__mro__ if kind is not object)
        files = dict.fromkeys(sys.modules.get(kind.__module__) for kind in classes)
        self._owners = [owner for owner in (*classes, *files, *OF_TORCH) if owner is not None]
        self._was = [_functions(owner) for owner in self._owners]

    def put_back(self) -> list[str]:
        """Each of them in words that is another now, or that is gone, after putting it back; and functions that were
        added to classes, where they take the place of those of a base class.
        """
        found = []
        for owner, was in zip(self._owners, self._was, strict=True):
            now = vars(owner)
            changed = [name for name, function in was.items() if now.get(name) is not function]
            for name in changed:
                setattr(owner, name, was[name])
            added = [name for name in _functions(owner) if name not in was and _covers(owner, name)]
            for name in added:
                delattr(owner, name)
            found += [f"another {name} {_of(owner)}" for name in (*changed, *added)]
        return found


def _functions(owner: Any) -> Mapping[str, Any]:
    return {name: value for name, value in vars(owner).items() if isinstance(value, FUNCTIONS)}


def _covers(owner: Any, name: str) -> bool:
    """Whether a class has it in place of a base class's."""
    return isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:])


def _of(owner: Any) -> str:
    return f"of the class {owner.__name__}" if isinstance(owner, type) else f"in {owner.__name__}"
