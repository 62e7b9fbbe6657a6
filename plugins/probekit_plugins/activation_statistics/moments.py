"""Second moments of any number of activations: the covariance, and the mean of unit vectors."""

from __future__ import annotations

import torch


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

    def tensor(self) -> torch.Tensor:
        """What the participation ratio follows from: `tr(C)`, `‖C‖_F` (of C times the count) and `‖x̄‖²`, `[3]`."""
        return torch.stack([self._products.trace(), self._products.norm(), self._mean @ self._mean])


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

    def squared_length(self) -> float:
        """`‖Σ u‖²`."""
        return float(self._sum @ self._sum)
