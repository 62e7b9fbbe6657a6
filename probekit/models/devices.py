"""Devices: where a module computes, and where its weights are meanwhile. Read from accelerate's hooks, which move them.

What is placed by a device map computes on its `execution_device`; its weights may be elsewhere, on the CPU or on disk,
and are then there only while the module's own forward runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn

# Where weights may wait that compute elsewhere.
HOME = ("cpu", "disk")


def alignment(module: nn.Module) -> AlignDevicesHook | None:
    """The hook that brings a module's inputs and weights to one device, if it has one."""
    hook = vars(module).get("_hf_hook")
    hooks = hook.hooks if isinstance(hook, SequentialHook) else (hook,)
    return next((each for each in hooks if isinstance(each, AlignDevicesHook)), None)


def offloading(module: nn.Module) -> AlignDevicesHook | None:
    """The hook that holds a module's weights while it does not run, if they are offloaded."""
    hook = alignment(module)
    return hook if hook is not None and hook.offload else None


def is_offloaded(model: nn.Module) -> bool:
    """Whether weights of a model come and go with the forwards of its modules."""
    return any(offloading(module) for module in model.modules())


def is_dispatched(model: nn.Module) -> bool:
    """Whether a device map has placed the parts of a model, which must not be moved then."""
    return any(alignment(module) for module in model.modules())


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: where accelerate brings its inputs, else where its first parameter is."""
    for part in module.modules():
        hook = alignment(part)
        if hook is not None and hook.execution_device is not None:
            return as_device(hook.execution_device)
    return next(module.parameters()).device


def as_device(device: torch.device | str | int) -> torch.device:
    """A device as torch names it, where a device map may have its number only."""
    if not isinstance(device, int):
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator()
    return torch.device("cuda" if accelerator is None else accelerator.type, device)


def device_of(path: str, device_map: Mapping[str, Any]) -> Any:
    """Where a device map puts a module, or a weight: as it says for it, or for the nearest module around it."""
    while path not in device_map:
        if not path:
            return "cpu"
        path = path.rpartition(".")[0]
    return device_map[path]


def computing_device(path: str, device_map: Mapping[str, Any]) -> torch.device:
    """Where what waits on the CPU or on disk computes: on the first device of the map that is neither, if there is one;
    everything else where it is.
    """
    place = device_of(path, device_map)
    if place in HOME:
        place = next((device for device in device_map.values() if device not in HOME), "cpu")
    return as_device(place)
