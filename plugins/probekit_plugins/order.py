"""The order in which a training sees its examples: all in a random order, then all in another, and so on."""

from __future__ import annotations

import torch


class Order:
    """`batch(n, size)` is the n-th batch of `count` examples, whatever was asked for before."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._last: tuple[int, torch.Tensor] | None = None

    def batch(self, number: int, size: int) -> torch.Tensor:
        """The examples of a batch, `[size]`."""
        rows = torch.empty(0, dtype=torch.long)
        while len(rows) < size:
            epoch, place = divmod(number * size + len(rows), self._count)
            rows = torch.cat([rows, self._of(epoch)[place : place + size - len(rows)]])
        return rows

    def _of(self, epoch: int) -> torch.Tensor:
        if self._last is None or self._last[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed ^ (epoch << 20))
            self._last = epoch, torch.randperm(self._count, generator=generator)
        return self._last[1]
