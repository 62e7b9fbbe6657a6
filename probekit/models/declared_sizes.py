"""Declared sizes: how large a model is that a config asks for, before time or memory is spent on making it.

A config of some hundred bytes can ask for a billion blocks. What it asks for is compared with the weights that come
with it, and where none do with the memory of this machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from probekit.errors import ModelError, size
from probekit.models.folders import clipped, headers

# Most modules of a model. The largest mixtures of experts have about a hundred thousand.
MODULES = 200_000
# A packed number stands for up to 32 of its own (weights of one bit in int32); a model that has fewer numbers than this
# beside those of its checkpoint is told by what is missing.
PACKED, SMALL = 32, 1 << 24


@contextmanager
def counting_modules(name: str) -> Iterator[None]:
    """While open, a model that is made of too many modules ends in a ModelError, however its config asks for them."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > MODULES:
            raise ModelError(
                f"The config of '{name}' asks for more than {MODULES:,} modules; it is taken for a mistake."
            )

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_against_files(model: nn.Module, files: list[Path], name: str, plain: bool) -> None:
    """Raise ModelError if a model, made without weights, has far more numbers than the safetensors files that come with
    it, or if weights are whole numbers there though they are `plain`, not quantised: they would be taken for real ones.

    Raises SafetensorError for a damaged file.
    """
    asked, there = sum(parameter.numel() for parameter in model.parameters()), 0
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    real = [path for path, parameter in model.named_parameters() if parameter.is_floating_point()]
    names = {*real, *(path.removeprefix(prefix) for path in real)}
    for key, kind, shape in headers(files):
        there += math.prod(shape)
        if plain and key in names and not kind.startswith(("F", "BF")):
            raise ModelError(
                f"The weight {clipped(key)} of '{name}' is saved as {kind}; expected real numbers, such as F32 or "
                "BF16, of a model whose config says nothing of quantisation."
            )
    if asked > PACKED * there + SMALL:
        raise ModelError(
            f"The weights of '{name}' do not fit its config: that asks for {asked:,} numbers, and there are {there:,} "
            "in the checkpoint; give the config that was saved with these weights."
        )


def check_memory(model: nn.Module, itemsize: int, name: str) -> None:
    """Raise ModelError if random weights, of so many bytes each, are more than all the memory of this machine."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed, there = parameters * itemsize + sum(buffer.nbytes for buffer in model.buffers()), memory()
    if needed > there:
        raise ModelError(
            f"'{name}' with random weights has {parameters:,} parameters, {size(needed)} that are made in memory, and "
            f"this machine has {size(there)}; --depth makes the first blocks only, --dtype bfloat16 smaller numbers."
        )


def memory() -> int:
    """Bytes of memory of this machine, or what this process's group may take of them."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [1 << 50]
    try:
        said = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        said = "max"
    return min([*limits, *([int(said)] if said.isdecimal() else [])])
