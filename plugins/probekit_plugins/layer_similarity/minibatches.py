"""Rows of activations, as they come, shuffled and dealt into minibatches of one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

Rows = dict[str, torch.Tensor]


class Minibatches:
    """Collects rows of every site, `[tokens, width]`, and deals them into minibatches, shuffled as cards are.

    Neighbouring rows are tokens of one prompt, and neighbouring prompts are of one length: they are more alike than
    tokens at random, which makes CKA of them another than that of all tokens. So as many rows are collected as fit into
    `memory` bytes, on the CPU, and each minibatch is a random sample of them: HSIC₁ is then, in expectation, that of
    the whole buffer. What is dealt depends on the generator and on the order of the rows, not on the batches that they
    come in.
    """

    def __init__(self, size: int, memory: float, widths: Mapping[str, int], generator: torch.Generator) -> None:
        fitting = int(memory / (4 * size * max(1, sum(widths.values()))))
        self._size = size
        self._generator = generator
        self._capacity = size * max(1, fitting)
        self._held: dict[str, list[torch.Tensor]] = {site: [] for site in widths}
        self._filled = 0

    def add(self, rows: Rows) -> Iterator[list[Rows]]:
        """Take in rows, the same number of each site; gives the minibatches of each buffer that they fill."""
        count = len(next(iter(rows.values())))
        taken = 0
        while taken < count:
            some = min(count - taken, self._capacity - self._filled)
            for site, held in self._held.items():
                held.append(rows[site][taken : taken + some].cpu())
            taken += some
            self._filled += some
            if self._filled == self._capacity:
                yield self._dealt()

    def rest(self) -> list[Rows]:
        """The minibatches of what is left at the end: of the asked size at most, and of nearly one size."""
        return self._dealt()

    def _dealt(self) -> list[Rows]:
        parts = -(-self._filled // self._size)
        order = torch.randperm(self._filled, generator=self._generator)
        self._filled = 0
        joined: Rows = {}
        for site, held in self._held.items():
            if held:
                joined[site] = torch.cat(held)
                held.clear()
        return [{site: rows[order[part::parts]] for site, rows in joined.items()} for part in range(parts)]
