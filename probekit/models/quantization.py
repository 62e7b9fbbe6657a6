"""Quantisation through bitsandbytes, and what has to be kept from happening so that a model stays one function."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from probekit.errors import ModelError
from probekit.models.devices import execution_device
from probekit.models.spec import ModelSpec


def quantization_config(quantization: str) -> BitsAndBytesConfig:
    """What from_pretrained() takes for `int8` (LLM.int8()), `nf4` or `fp4`."""
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_compute_dtype=torch.float32)


def _is_not_about_casting(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)


def quantised_as(config: Any) -> str | None:
    """How the weights of a checkpoint are quantised already, if they are: `int8`, `nf4`, `fp4`, or another method."""
    for part in (config, config.get_text_config(decoder=True)):
        found = getattr(part, "quantization_config", None)
        if found is None:
            continue
        said = found if isinstance(found, dict) else found.to_dict()
        if said.get("load_in_8bit"):
            return "int8"
        if said.get("load_in_4bit"):
            return str(said.get("bnb_4bit_quant_type", "fp4"))
        method = said.get("quant_method", "unknown")
        return str(getattr(method, "value", method))
    return None


def without_quantization(config: Any) -> Any:
    """A copy of a config that says nothing of how weights are quantised: for weights of one's own."""
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config(decoder=True)):
        vars(part).pop("quantization_config", None)
    return plain


def quantised_layers(model: nn.Module) -> dict[str, int]:
    """How many layers bitsandbytes has quantised, by kind (`int8`, `nf4`, `fp4`), and how many linear ones are not
    (`unquantised`).

    Empty for a model without any. A layer counts by what its weight is: int8 numbers, or packed ones with their scales.
    """
    found = Counter(_kind(module) for module in model.modules())
    del found[""]
    return dict(found) if found.keys() - {"unquantised"} else {}


def numbers(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for, packed ones each."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def quantised_share(model: nn.Module) -> float:
    """Which share of a model's weights is quantised: experts that are joined in one tensor, for example, are not."""
    counted = {id(part): numbers(part) for part in model.parameters()}
    weights = [module.weight for module in model.modules() if _kind(module) not in ("", "unquantised")]
    return sum(counted[id(weight)] for weight in weights) / sum(counted.values())


def _kind(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return str(state.quant_type)
    if type(module).__name__ == "Linear8bitLt" and weight is not None and weight.dtype == torch.int8:
        return "int8"
    return "unquantised" if isinstance(module, nn.Linear | Conv1D) else ""


def check_quantised(model: nn.Module, spec: ModelSpec, by_plugin: bool) -> None:
    """Raise ModelError unless there are layers of the kind that was asked for, and of no other."""
    kinds = quantised_layers(model).keys() - {"unquantised"}
    if not kinds and by_plugin:
        raise ModelError(
            f"The plugin that loads '{spec.name}' has not quantised it to {spec.quantization}; "
            "leave --quantization out."
        )
    if not kinds:
        raise ModelError(
            f"'{spec.name}' has no linear layer that bitsandbytes converts, so it cannot be quantised to "
            f"{spec.quantization}; leave --quantization out."
        )
    if kinds != {spec.quantization}:
        raise ModelError(
            f"'{spec.name}' was to be quantised to {spec.quantization}, but has layers of {', '.join(sorted(kinds))}."
        )


def check_already_quantised(model: nn.Module, already: str, spec: ModelSpec) -> None:
    """Raise ModelError if bitsandbytes' layers hold weights that are not quantised, though the config says they are."""
    if already not in ("int8", "nf4", "fp4"):
        return
    for path, module in model.named_modules():
        if type(module).__name__ in ("Linear8bitLt", "Linear4bit") and _kind(module) in ("", "unquantised"):
            raise ModelError(
                f"The config of '{spec.name}' says that its weights are quantised already ({already}), but {path} is "
                "not; take quantization_config out of the config."
            )


def keep_quantised_weights(model: nn.Module) -> None:
    """Keep bitsandbytes from changing a model's state while it runs.

    On CPUs with AVX512-BF16 the first forward without gradients rewrites 4-bit weights for a kernel that rounds to
    bfloat16, has no gradient and takes no other width than multiples of 64: a layer map would be another function than
    its capture. And the biases of 4-bit layers are cast for good, by the first forward, to the type that is computed
    in: here beforehand.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        computed, bias = getattr(module, "compute_dtype", None), getattr(module, "bias", None)
        if isinstance(computed, torch.dtype) and isinstance(bias, nn.Parameter):
            bias.data = bias.data.to(computed)
    if quantised_layers(model).get("int8"):
        # One line for every layer and step otherwise; int8 is what was asked for.
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_not_about_casting)


def check_reading_back(model: nn.Module, spec: ModelSpec) -> None:
    """Refuse a model whose 4-bit weights are read back wrongly.

    On CPUs with AVX-512, bitsandbytes 0.50 does so, without a word, for layers whose width is a multiple of 16 but not
    of the 64 weights that share a scale. So that other versions are judged by what they do, it is measured.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    seen = set()
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None or state.shape[-1] % state.blocksize == 0:
            continue
        width, device = state.shape[-1], execution_device(module)
        if (width, device) in seen:
            continue
        seen.add((width, device))
        index = torch.arange(8 * width, device=device)
        weights = ((index % 7 - 3) * (1 + index // state.blocksize)).float().view(8, width)
        packed, scales = quantize_4bit(weights, blocksize=state.blocksize, quant_type=state.quant_type)
        if (dequantize_4bit(packed, scales) - weights).norm() > 0.15 * weights.norm():
            raise ModelError(
                f"'{spec.name}' cannot be computed in {state.quant_type} here: the kernel of bitsandbytes for "
                f"{device} reads weights of the width {width} ({path}) back wrongly; use --quantization int8 or none."
            )
