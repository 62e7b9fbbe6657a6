"""Rows of a batch in as few parts as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from probekit import Subject

Part = TypeVar("Part")


def in_parts(
    count: int, at_once: int | None, compute: Callable[[slice], Part], log: Callable[[str], None], where: str
) -> Sequence[Part]:
    """`compute` of slices that cover `count` rows: all at once or `at_once`, halved while memory runs out."""
    rows = at_once or count
    while True:
        try:
            return [compute(slice(first, min(first + rows, count))) for first in range(0, count, rows)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or rows == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows = -(-rows // 2)
        log(f"Out of memory at {where}; going on with {rows} rows at once.")


def without_padding(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`[B, T, w]`, zero where the mask `[B, T, 1]` is. Values at other positions than the prompts', as those of patches
    of tokens, are left as they are: models that have them are given no padding.
    """
    return values * mask.to(values) if values.shape[1] == mask.shape[1] else values


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on CUDA or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def notes_on_rows(subject: Subject) -> list[str]:
    """What a reader has to know of rows that were computed as one batch."""
    if getattr(subject.model, "is_loaded_in_8bit", False):
        return ["int8: rows of one batch influence each other slightly, through shared outlier columns."]
    return []
