"""Placement: which part of a model goes to which device, as a device map and the memory of each device say."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.modeling import check_device_map, convert_file_size_to_int
from torch import nn
from transformers.integrations.accelerate import (
    compute_module_sizes,
    get_balanced_memory,
    get_max_memory,
    infer_auto_device_map,
)
from transformers.quantizers.auto import AutoHfQuantizer

from probekit.errors import UsageError, nearest
from probekit.models.devices import HOME, device_of
from probekit.models.quantization import quantised_as, quantization_config
from probekit.models.spec import ModelSpec

WORDS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_devices(spec: ModelSpec) -> None:
    """Raise UsageError where the spec names devices that are not there, or that contradict each other."""
    if spec.device is not None and spec.device_map is not None:
        raise UsageError("Both a device and a device map are given; give one of them.")
    if spec.device is not None:
        _check_device(spec.device)
    if isinstance(spec.device_map, str) and spec.device_map not in WORDS:
        try:
            torch.device(spec.device_map)
        except RuntimeError:
            raise UsageError(
                f"'{spec.device_map}' is no device map; expected {', '.join(WORDS)}, a device, or JSON from module "
                f"paths to devices.{nearest(spec.device_map, WORDS)}"
            ) from None
        _check_device(spec.device_map)
    for path, device in spec.device_map.items() if isinstance(spec.device_map, dict) else ():
        if device not in HOME:
            _check_device(device, f" (in the device map, for '{path}')")
    if spec.max_memory == {}:
        raise UsageError("The memory of no device is given; name some, as in --max-memory 0=10GiB,cpu=30GiB.")
    for device, size in (spec.max_memory or {}).items():
        if device not in HOME:
            _check_device(device, " (in --max-memory)")
        _bytes(size)


def _check_device(name: str | int, where: str = "") -> None:
    try:
        device = torch.device("cuda", name) if isinstance(name, int) else torch.device(name)
    except RuntimeError:
        raise UsageError(f"'{name}' is not a device{where}; expected 'cpu', 'cuda:0', 'mps' or the like.") from None
    there = torch.cuda.device_count()
    accelerator = torch.accelerator.current_accelerator()
    if device.type not in ("cpu", "cuda", "mps" if accelerator is None else accelerator.type) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise UsageError(f"There is no device '{name}' here that could compute{where}.")
    if device.type == "cpu" and device.index:
        raise UsageError(f"There is one CPU, 'cpu', and no '{name}'{where}.")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= there):
        raise UsageError(f"There is no device '{name}' here ({there} CUDA devices){where}.")


@dataclass(frozen=True)
class Placement:
    """Where a model's parts go: by path, the device of each; the bytes of every part; the bytes free on each device."""

    device_map: dict[str, Any]
    sizes: Mapping[str, int]
    free: Mapping[Any, int]

    def offloads(self) -> bool:
        """Whether weights are elsewhere than where they are computed with."""
        devices = set(self.device_map.values())
        return "disk" in devices or ("cpu" in devices and len(devices) > 1)


def placement(model: nn.Module, spec: ModelSpec) -> Placement:
    """Where a skeleton's parts go: by `--device-map` where one is given, else by `auto`.

    Raises UsageError for a map that names no part of the model, or leaves one out. Source: `_get_device_map` in
    transformers.integrations.accelerate.
    """
    quantizer: Any = None
    if kind := by_bitsandbytes(model.config, spec):
        model = copy.deepcopy(model)
        quantizer = AutoHfQuantizer.from_config(quantization_config(kind), pre_quantized=False)
        quantizer.preprocess_model(model=model, device_map=None)
    sizes, _ = compute_module_sizes(model, quantizer, only_modules=False)  # type: ignore[arg-type]
    given = limits(spec)
    free = get_max_memory(given)
    if isinstance(spec.device_map, dict):
        _check_paths(model, spec.device_map)
        return Placement(dict(spec.device_map), sizes, free)
    if spec.device_map is not None and spec.device_map not in WORDS:
        return Placement({"": spec.device_map}, sizes, free)
    kept_whole: Any = getattr(model, "_no_split_modules", None)
    if spec.device_map == "sequential":
        memory = dict(free)
    else:
        memory = get_balanced_memory(
            model,  # type: ignore[arg-type]
            max_memory=given,
            no_split_module_classes=kept_whole,
            hf_quantizer=quantizer,
            low_zero=spec.device_map == "balanced_low_0",
        )
    if quantizer is not None:
        memory = quantizer.adjust_max_memory(memory)
    found = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=kept_whole, hf_quantizer=quantizer)
    return Placement(dict(found), sizes, free)


def limits(spec: ModelSpec) -> Any:
    """The memory of every device, where that of some is given: of the others what they have."""
    return None if spec.max_memory is None else {**get_max_memory(), **spec.max_memory}


def limits_in_bytes(spec: ModelSpec) -> dict[int | str, int]:
    """How much of each device that is named weights and batches may take together."""
    return {device: _bytes(size) for device, size in (spec.max_memory or {}).items()}


def _bytes(size: int | str) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except (ValueError, OverflowError):
        raise UsageError(f"'{size}' is no size of memory; expected bytes, or '10GiB', '500MB' or the like.") from None


def by_bitsandbytes(config: Any, spec: ModelSpec) -> str | None:
    """The kind of bitsandbytes' layers that a model gets, or comes with."""
    kind = spec.quantization or (quantised_as(config) if spec.weights == "pretrained" else None)
    return kind if kind in ("int8", "nf4", "fp4") else None


def _check_paths(model: nn.Module, device_map: Mapping[str, Any]) -> None:
    known = [path for path, _ in model.named_modules()] + list(model._parameters)
    for path in device_map:
        if path not in known:
            raise UsageError(f"The device map names '{path}', which is no part of the model.{nearest(path, known)}")
    try:
        check_device_map(model, device_map)
    except ValueError as error:
        missing = str(error).partition(": ")[2].split(", ")
        raise UsageError(
            f"The device map leaves {len(missing)} weights of the model out (first: {missing[0]}); the path '' stands "
            "for all that no other names."
        ) from None
    for name, source in getattr(model, "all_tied_weights_keys", {}).items():
        places = [device_of(key, device_map) for key in (name, source)]
        if "disk" in places and places[0] != places[1]:
            raise UsageError(
                f"The device map puts '{name}' on {places[0]} and '{source}' on {places[1]}, but they are one weight; "
                "put both on one."
            )
