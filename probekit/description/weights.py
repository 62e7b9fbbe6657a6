"""Weights: how many parameters the parts of a model have, and the memory that they take in each precision.

Counted on a skeleton, so nothing is allocated. A parameter that several parts share counts once, in the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from probekit.models.anatomy import Anatomy

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How many weights of 4 bits share one scale of bitsandbytes; of 8 bits, those of one output do. Scales are fp32.
_BLOCK = 64


class Weights:
    """The parameters of a model by part: `embedding`, one part for each block, `norm`, `unembedding` and `rest`."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self._model = model
        self._dtype = getattr(model, "dtype", None) or next(model.parameters()).dtype
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        taken: set[int] = set()

        def take(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
            found = {id(parameter): parameter for parameter in parameters if id(parameter) not in taken}
            taken.update(found)
            return list(found.values())

        self._embedding = take(anatomy.embedding.parameters())
        self._blocks = [take(block.parameters()) for block in anatomy.blocks]
        self._norm = take(anatomy.norm.parameters() if anatomy.norm is not None else [])
        self._unembedding = take(anatomy.unembedding.parameters() if anatomy.unembedding is not None else [])
        self._rest = take(model.parameters())

    def counts(self) -> dict[str, Any]:
        """The number of parameters: `total`, of the parts, and of each block in a list."""
        parts = {
            "embedding": _count(self._embedding),
            "blocks": [_count(block) for block in self._blocks],
            "norm": _count(self._norm),
            "unembedding": _count(self._unembedding),
            "rest": _count(self._rest),
        }
        return {"total": _count(self._all()), **parts}

    def memory(self) -> dict[str, dict[str, int]]:
        """Bytes by precision and by how far a run goes: `whole`, and up to and with the middle and the last block.

        What a run up to a block needs is all but the blocks past it, the norm and the head. In int8 and nf4 the linear
        layers that bitsandbytes converts, and the rest in the precision that the model is loaded in.
        """
        return {name: self._reaching(name) for name in (*PRECISIONS, "int8", "nf4")}

    def _reaching(self, precision: str) -> dict[str, int]:
        def size(parameters: Iterable[nn.Parameter]) -> int:
            return sum(self._bytes(parameter, precision) for parameter in parameters)

        first = size(self._embedding) + size(self._rest)
        blocks = [size(block) for block in self._blocks]
        middle, last = (len(blocks) - 1) // 2, len(blocks) - 1
        return {
            "whole": first + sum(blocks) + size(self._norm) + size(self._unembedding),
            f"block.{middle}": first + sum(blocks[: middle + 1]),
            f"block.{last}": first + sum(blocks),
        }

    def _bytes(self, parameter: nn.Parameter, precision: str) -> int:
        count = parameter.numel()
        if precision in PRECISIONS:
            return count * self._kept(parameter, PRECISIONS[precision]).itemsize
        rows = self._rows.get(id(parameter))
        if precision == "nf4" and id(parameter) in self._biases:
            return count * torch.float32.itemsize  # what these layers compute in
        if rows is None:
            return count * self._kept(parameter, self._dtype).itemsize
        return count + 4 * rows if precision == "int8" else -(-count // 2) + 4 * -(-count // _BLOCK)

    def _kept(self, parameter: nn.Parameter, dtype: torch.dtype) -> torch.dtype:
        """The precision that a parameter gets where the model is loaded in `dtype`."""
        if not parameter.is_floating_point() or parameter.dtype != self._dtype:
            return parameter.dtype  # made in a precision of its own, which it keeps
        return torch.float32 if self._in_fp32[dtype].search(self._names[id(parameter)]) else dtype

    @cached_property
    def _in_fp32(self) -> dict[torch.dtype, re.Pattern[str]]:
        """What transformers keeps in fp32, by the precision that is asked for: less goes wrong in bf16 than in fp16."""
        strict = set(getattr(self._model, "_keep_in_fp32_modules_strict", None) or ())
        half = strict | set(getattr(self._model, "_keep_in_fp32_modules", None) or ())
        kept = {torch.float16: half, torch.bfloat16: strict}
        return {
            dtype: re.compile("|".join(name.replace("*", ".*") for name in sorted(kept.get(dtype, ()))) or r"(?!)")
            for dtype in (torch.float64, *PRECISIONS.values(), self._dtype)
        }

    @cached_property
    def _rows(self) -> dict[int, int]:
        """The weights that bitsandbytes converts, with the number of outputs of their layers."""
        return {
            id(layer.weight): layer.weight.shape[1] if isinstance(layer, Conv1D) else layer.weight.shape[0]
            for _, layer in converted_layers(self._model)
        }

    @cached_property
    def _biases(self) -> set[int]:
        """The biases of the layers that bitsandbytes converts."""
        return {id(layer.bias) for _, layer in converted_layers(self._model) if layer.bias is not None}

    def converted(self) -> dict[str, int]:
        """The number of linear layers that are quantised where int8 or nf4 is asked for, and of their weights."""
        weights = [parameter for parameter in self._all() if id(parameter) in self._rows]
        return {"layers": sum(1 for _ in converted_layers(self._model)), "parameters": _count(weights)}

    def _all(self) -> list[nn.Parameter]:
        return [*self._embedding, *chain(*self._blocks), *self._norm, *self._unembedding, *self._rest]


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def converted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear layers that transformers has bitsandbytes quantise, by path: not the head, nor what is tied to it.

    None of a model that transformers did not build. Source: `replace_with_bnb_linear` and `Bnb8BitHfQuantizer` there.
    """
    if not hasattr(model, "all_tied_weights_keys"):
        return
    kept = HfQuantizer.get_modules_to_not_convert(model, None, getattr(model, "_keep_in_fp32_modules", None))
    for path, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(path, kept):
            yield path, module
