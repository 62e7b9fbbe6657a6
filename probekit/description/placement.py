"""Placement: how the parts of a model would be spread over the devices of this machine."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers.integrations.accelerate import (
    check_and_set_device_map,
    compute_module_sizes,
    get_balanced_memory,
    get_max_memory,
    infer_auto_device_map,
)
from transformers.quantizers.auto import AutoHfQuantizer

from probekit.models.failures import in_sentences, quiet_libraries
from probekit.models.quantization import quantization_config
from probekit.models.spec import ModelSpec


def placement(model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
    """Where `from_pretrained` would put a skeleton's modules: by `--device-map` where one is given, else by `auto`.

    `devices` has, for each, the bytes that are free there, those of the weights that it would get, and which modules;
    `fits` says whether all of it stays in memory. Raises ModelError with one sentence for a device map or memory that
    is none. Source: `_get_device_map` in transformers.integrations.accelerate.
    """
    with quiet_libraries(), in_sentences(spec):
        return _placement(model, spec)


def _placement(model: nn.Module, spec: ModelSpec) -> dict[str, Any]:
    device_map: Any = check_and_set_device_map(spec.device_map or "auto")
    quantizer: Any = None
    if spec.quantization is not None:
        model = copy.deepcopy(model)
        quantizer = AutoHfQuantizer.from_config(quantization_config(spec.quantization), pre_quantized=False)
        quantizer.preprocess_model(model=model, device_map=None)
    kept_whole: Any = getattr(model, "_no_split_modules", None)
    given: Any = dict(spec.max_memory) if spec.max_memory is not None else None
    free = get_max_memory(given)
    if isinstance(device_map, str):
        if device_map == "sequential":
            memory = dict(free)
        else:
            memory = get_balanced_memory(
                model,  # type: ignore[arg-type]
                max_memory=given,
                no_split_module_classes=kept_whole,
                hf_quantizer=quantizer,
                low_zero=device_map == "balanced_low_0",
            )
        if quantizer is not None:
            memory = quantizer.adjust_max_memory(memory)
        where: dict[str, Any] = infer_auto_device_map(
            model, max_memory=memory, no_split_module_classes=kept_whole, hf_quantizer=quantizer
        )
    else:
        where = dict(device_map)
    sizes, _ = compute_module_sizes(model, quantizer, only_modules=False)  # type: ignore[arg-type]
    devices: dict[str, dict[str, Any]] = {}
    for path, device in where.items():
        entry = devices.setdefault(_name(device), {"free": _whole(free.get(device)), "weights": 0, "modules": []})
        entry["weights"] += int(sizes.get(path, 0))
        entry["modules"].append(path)
    return {"device_map": device_map, "devices": devices, "fits": "disk" not in devices}


def _name(device: Any) -> str:
    return f"{'cuda' if torch.cuda.is_available() else 'device'}:{device}" if isinstance(device, int) else str(device)


def _whole(size: Any) -> int | None:
    return None if size is None else int(size)
