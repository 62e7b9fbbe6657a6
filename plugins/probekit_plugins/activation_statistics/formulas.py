"""Quantiles of a histogram, the participation ratio and the mean cosine, from what is kept of activations. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

# Activations that vary by less than this share of their own length do not vary: it is what fp32 rounds off.
_NO_SPREAD = 1e-7


@dataclass
class Classes:
    """The classes of a histogram that there are, with rising values, and how many magnitudes each has."""

    values: Any
    counts: Any

    def quantile(self, share: float) -> float:
        """The least class that at least this share of the magnitudes do not exceed; 0.5 is the lower median."""
        rank = max(1, math.ceil(share * int(self.counts.sum())))
        return float(self.values[int((self.counts.cumsum(0) < rank).sum())])

    def above(self, bound: float) -> int:
        """How many are of a class above this bound."""
        return int(self.counts[self.values > bound].sum())


def participation_ratio(count: int, trace: float, norm: float, mean_squared: float) -> float | None:
    """`(Σ λ)² / Σ λ² = tr(C)² / ‖C‖_F²` with λ the eigenvalues of the covariance C: between 1 and the width.

    `trace` and `norm` are those of C times the count, `mean_squared` is `‖x̄‖²`. None for fewer than two rows, or for
    rows that are all the same.
    """
    if count < 2 or trace <= count * _NO_SPREAD**2 * mean_squared:
        return None
    return (trace / norm) ** 2


def mean_cosine(count: int, squared: float) -> float | None:
    """`(‖Σ u‖² − n) / (n (n − 1))` of n unit vectors u, with `squared = ‖Σ u‖²`: the mean over all pairs of different
    tokens, and so unbiased for any n ≥ 2. None for fewer.
    """
    return (squared - count) / (count * (count - 1)) if count >= 2 else None
