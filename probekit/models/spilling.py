"""Spilling: what is quantised while a model loads, and belongs on disk, goes there at once and is mapped from there.

transformers keeps modules on the CPU or on disk in fp32 where it quantises the others. With these quantisers of
transformers' own kind, all of them are quantised, layer by layer, and no more than one is in memory on the way. A
mapped weight is an ordinary tensor on the CPU, whose pages the kernel reads when they are needed and drops when memory
is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Int8Params
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from probekit.models.devices import HOME, computing_device, device_of
from probekit.models.failures import DiskFull
from probekit.models.mapping import is_mapped, mapped_files


def mapped(tensor: torch.Tensor, folder: str) -> torch.Tensor:
    """The same values, mapped from a file that goes with them: it has no name any more, only its place on the disk."""
    with tempfile.TemporaryDirectory(prefix="probekit-", dir=folder, ignore_cleanup_errors=True) as place:
        file = Path(place) / "weight.safetensors"
        try:
            save_file({"weight": tensor.detach().contiguous().cpu()}, file)
        except (OSError, SafetensorError) as error:
            raise DiskFull(str(error)) from error
        with safe_open(file, framework="pt") as saved:
            found: torch.Tensor = saved.get_tensor("weight")
    return found


def spill(model: nn.Module, device_map: Mapping[str, Any], folder: str) -> None:
    """Map the parameters of a loaded model that belong on disk and are in memory: those that are not as the checkpoint
    has them, because they were cast, or joined, as those of experts.
    """
    ranges = mapped_files()
    for name, parameter in model.named_parameters():
        plain = type(parameter) is nn.Parameter and device_of(name, device_map) == "disk"
        if plain and not is_mapped(parameter, ranges):
            parameter.data = mapped(parameter.data, folder)


class SpillingConfig(BitsAndBytesConfig):
    """How to quantise, and what of it belongs on disk."""

    def __init__(self, config: BitsAndBytesConfig, device_map: Mapping[str, Any], folder: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        vars(self).update(vars(config))
        self.plain = config
        self.quant_method: Any = f"probekit_{8 if config.load_in_8bit else 4}bit"
        self.device_map = dict(device_map)
        self.folder = folder


class _Spill(ConversionOps):
    """Quantises as bitsandbytes does, on the device that computes, and puts the result where it belongs."""

    def __init__(self, quantise: ConversionOps, config: SpillingConfig) -> None:
        self._quantise, self._config = quantise, config

    def convert(self, input_dict: dict[str, Any], *arguments: Any, **keywords: Any) -> dict[str, Any]:
        device_map = self._config.device_map
        [name] = input_dict
        [value] = input_dict[name] if isinstance(input_dict[name], list) else [input_dict[name]]
        given = {name: value.to(computing_device(name, device_map))}
        found: dict[str, Any] = self._quantise.convert(given, *arguments, **keywords)
        place = device_of(name, device_map)
        if place in HOME:
            found[name] = parameter = found[name].to("cpu")
            if place == "disk":
                parameter.data = mapped(parameter.data, self._config.folder)
                if isinstance(parameter, Int8Params):
                    parameter.CB = parameter.data
        return found


@register_quantizer("probekit_8bit")
class Spilling8bit(Bnb8BitHfQuantizer):
    """LLM.int8()."""

    def get_quantize_ops(self) -> ConversionOps:
        return _Spill(super().get_quantize_ops(), self.quantization_config)  # type: ignore[no-untyped-call, arg-type]


@register_quantizer("probekit_4bit")
class Spilling4bit(Bnb4BitHfQuantizer):
    """NF4 and FP4."""

    def get_quantize_ops(self) -> ConversionOps:
        return _Spill(super().get_quantize_ops(), self.quantization_config)  # type: ignore[no-untyped-call, arg-type]


for _name in ("probekit_8bit", "probekit_4bit"):
    register_quantization_config(_name)(SpillingConfig)
