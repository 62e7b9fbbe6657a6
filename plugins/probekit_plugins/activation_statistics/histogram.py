"""Quantiles of any number of magnitudes in fixed memory: a histogram with logarithmic classes."""

from __future__ import annotations

import math

import torch

# A magnitude's class is its bfloat16: sign (always 0), 8 bits of exponent and 7 of mantissa.
CLASSES = 1 << 15
_LARGEST_FINITE = 0x7F7F


class Magnitudes:
    """How many magnitudes there are of each class: a value rounded to bfloat16, so to within 0.4 % of itself.

    Classes follow from the bits of the fp32 value and not from a logarithm, so they are the same on every device; they
    cover all of fp32, and values that are bfloat16 already are counted as what they are.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(CLASSES, dtype=torch.long)

    def add(self, values: torch.Tensor) -> None:
        """Count `|values|`, of any shape; they are finite."""
        bits = values.abs().float().flatten().view(torch.int32)
        classes = ((bits + 0x8000) >> 16).clamp_(max=_LARGEST_FINITE)
        self._counts += torch.bincount(classes, minlength=CLASSES).cpu()

    @property
    def count(self) -> int:
        """How many have been counted."""
        return int(self._counts.sum())

    def quantile(self, share: float) -> float:
        """The least class that at least this share of the magnitudes do not exceed; 0.5 is the lower median."""
        rank = max(1, math.ceil(share * self.count))
        return float(_values()[int((self._counts.cumsum(0) < rank).sum())])

    def above(self, bound: float) -> int:
        """How many are of a class above this bound."""
        return int(self._counts[_values() > bound].sum())


def _values() -> torch.Tensor:
    """The value of each class; those past the largest finite one are infinite or NaN, and empty."""
    return (torch.arange(CLASSES, dtype=torch.int32) << 16).view(torch.float32).double()
