"""Second moments of any number of activations: the covariance, and the mean of unit vectors."""

from __future__ import annotations

import torch

# Activations that vary by less than this share of their own length do not vary: it is what fp32 rounds off.
_NO_SPREAD = 1e-7


class Covariance:
    """Mean `[width]` and `Σ (x − x̄)(x − x̄)ᵀ` `[width, width]`, in float64 on the CPU.

    Each batch is centred by its own mean and merged as in Chan, Golub and LeVeque (1979), so that nothing cancels
    where the mean is large beside the spread. It takes `8 width²` bytes.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows `[tokens, width]` of float64."""
        if not len(rows):
            return
        mean = rows.mean(0)
        centred = rows - mean
        apart = mean.cpu() - self._mean
        total = self.count + len(rows)
        self._products += (centred.T @ centred).cpu()
        self._products.addr_(apart, apart, alpha=self.count * len(rows) / total)
        self._mean += apart * (len(rows) / total)
        self.count = total

    def participation_ratio(self) -> float | None:
        """`(Σ λ)² / Σ λ² = tr(C)² / ‖C‖_F²` with λ the eigenvalues of the covariance C: between 1 and the width.

        None for fewer than two rows, or for rows that are all the same.
        """
        trace = float(self._products.trace())
        if self.count < 2 or trace <= self.count * _NO_SPREAD**2 * float(self._mean @ self._mean):
            return None
        return float((trace / self._products.norm()) ** 2)


class Directions:
    """The sum of unit vectors `x / ‖x‖`, from which the mean cosine of two different tokens follows."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)

    def add(self, rows: torch.Tensor, norms: torch.Tensor) -> None:
        """Take in rows `[tokens, width]` with their norms `[tokens]`; those of norm 0 have no direction."""
        directed = norms > 0
        self._sum += (rows[directed] / norms[directed][:, None]).sum(0).cpu()
        self.count += int(directed.sum())

    def mean_cosine(self) -> float | None:
        """`(‖Σ u‖² − n) / (n (n − 1))`: the mean over all pairs of different tokens, and so unbiased for any n ≥ 2.

        None for fewer.
        """
        if self.count < 2:
            return None
        return (float(self._sum @ self._sum) - self.count) / (self.count * (self.count - 1))
