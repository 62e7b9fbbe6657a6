"""Quantisation through bitsandbytes, and what has to be kept from happening so that a model stays one function."""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from probekit.errors import ModelError
from probekit.models.spec import ModelSpec


def quantization_config(quantization: str) -> BitsAndBytesConfig:
    """What from_pretrained() takes for `int8` (LLM.int8()), `nf4` or `fp4`."""
    if quantization == "int8":
        # One line for every layer and step otherwise; int8 is what was asked for.
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_not_about_casting)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_compute_dtype=torch.float32)


def _is_not_about_casting(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in str(record.msg)


def keep_quantized_weights(model: nn.Module) -> None:
    """Switch off the repacking of 4-bit weights on CPUs with AVX512-BF16.

    There the first forward without gradients rewrites the weights for a kernel that rounds to bfloat16, has no
    gradient and takes no other width than multiples of 64: a layer map would be another function than its capture.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


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
        width, device = state.shape[-1], module.weight.device
        if (width, device) in seen:
            continue
        seen.add((width, device))
        index = torch.arange(8 * width, device=device)
        weights = ((index % 7 - 3) * (1 + index // state.blocksize)).float().view(8, width)
        packed, scales = quantize_4bit(weights, blocksize=state.blocksize, quant_type=state.quant_type)
        if (dequantize_4bit(packed, scales) - weights).norm() > 0.15 * weights.norm():
            raise ModelError(
                f"'{spec.name}' cannot be quantised to {spec.quantization} here: the kernel of bitsandbytes for "
                f"{device} reads weights of the width {width} ({path}) back wrongly; use --quantization int8 or none."
            )
