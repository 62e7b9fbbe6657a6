"""Placement: how the parts of a model would be spread over the devices of this machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from probekit.models.failures import in_sentences, quiet_libraries
from probekit.models.placement import placement
from probekit.models.spec import ModelSpec


def describe_placement(model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
    """Where `load` would put a skeleton's modules: by `--device-map` where one is given, else by `auto`.

    `devices` has, for each, the bytes that are free there, those of the weights that it would get, and which modules;
    `fits` says whether all of it stays in memory. Raises ModelError with one sentence for a device map or memory that
    is none.
    """
    with quiet_libraries(), in_sentences(spec):
        found = placement(model, spec)
    devices: dict[str, dict[str, Any]] = {}
    for path, device in found.device_map.items():
        entry = devices.setdefault(_name(device), {"free": _whole(found.free.get(device)), "weights": 0, "modules": []})
        entry["weights"] += int(found.sizes.get(path, 0))
        entry["modules"].append(path)
    asked = spec.device_map or "auto"
    return {"device_map": asked, "devices": devices, "fits": "disk" not in devices}


def _name(device: Any) -> str:
    return f"{'cuda' if torch.cuda.is_available() else 'device'}:{device}" if isinstance(device, int) else str(device)


def _whole(size: Any) -> int | None:
    return None if size is None else int(size)
