"""Any number of magnitudes in fixed memory: a histogram with logarithmic classes."""

from __future__ import annotations

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

    def tensors(self) -> dict[str, torch.Tensor]:
        """The `values` of the classes that there are, rising, in fp32, and how many magnitudes each has, `counts`."""
        classes = self._counts.nonzero()[:, 0]
        return {"values": (classes.int() << 16).view(torch.float32), "counts": self._counts[classes]}
