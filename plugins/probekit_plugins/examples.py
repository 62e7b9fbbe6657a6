"""Activations to train on and to measure by: one pass over any number of documents, some of them held out whole.

An example is what a training step learns from: the activation of one token at one site (`[1, d]`), or two views of the
same thing (`[2, d]`), such as one token at two sites or the means of two halves of a document. A document is a prompt.
Documents are held out by what is in them, so that one that is there twice is never on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from probekit import AnalysisError
from probekit_plugins.activation_rows import finite_rows
from probekit_plugins.order import Order

if TYPE_CHECKING:
    from probekit import ActivationBatch

Views = Literal["token", "sites", "segments"]


@dataclass(frozen=True)
class Document:
    """A document that is held out: its token ids, its examples `[n, views, d]`, and the position of each, `[n]`."""

    number: int
    ids: list[int]
    examples: torch.Tensor
    positions: torch.Tensor

    @property
    def about(self) -> torch.Tensor:
        """The token id, the position and the document's number of each example: `[n, 3]`."""
        tokens = torch.tensor(self.ids)[self.positions]
        return torch.stack([tokens, self.positions, torch.full_like(tokens, self.number)], 1)


@dataclass(frozen=True)
class Examples:
    """Examples to train on `[n, views, d]`, on the CPU, and the documents that are held out.

    `about` is each example's token id, position and document: `[n, 3]`. `seen` counts the examples that there were to
    train on; fewer are kept where memory did not suffice.
    """

    training: torch.Tensor
    about: torch.Tensor
    held_out: list[Document]
    documents: int
    tokens: int
    seen: int
    token_texts: Callable[[Sequence[int]], list[str]]

    @property
    def held(self) -> torch.Tensor:
        """The examples of the held-out documents, one after the other: `[n, views, d]`."""
        return torch.cat([document.examples for document in self.held_out])

    def batch(self, number: int, size: int, seed: int) -> torch.Tensor:
        """Which examples are the `number`-th batch: all in a random order, then all in another, and so on; `[size]`."""
        if seed not in self._orders:
            self._orders[seed] = Order(len(self.training), seed)
        return self._orders[seed].batch(number, size)

    @cached_property
    def _orders(self) -> dict[int, Order]:
        return {}


class Collection:
    """Collects examples from batches of activations, in bounded memory.

    `held_out` is the share of the documents that is held out, at most so many of their tokens; of the other examples as
    many are kept as fit into `memory` bytes, each with the same chance.
    """

    def __init__(
        self,
        views: Views,
        skip_first: int,
        held_out: float,
        held_out_tokens: int,
        memory: float,
        generator: torch.Generator,
    ) -> None:
        self._views, self._skip, self._share = views, skip_first, held_out
        self._most_held, self._memory, self._generator = held_out_tokens, memory, generator
        self._held: list[tuple[bytes, Document]] = []
        self._held_tokens = 0
        # The least digest that did not fit: what is not below it is to train on, also if it comes once more.
        self._bound: bytes | None = None
        self._measurable = 0
        self._kept: list[torch.Tensor] = []
        self._about: list[torch.Tensor] = []
        self._kept_bytes = 0
        self._token_texts: Callable[[Sequence[int]], list[str]] = lambda ids: [str(index) for index in ids]
        self._chances: list[torch.Tensor] = []
        self.documents = self.tokens = self.seen = 0
        self._width: int | None = None

    def add(self, batch: ActivationBatch, sites: Sequence[str]) -> None:
        """Take in all documents of a batch, at one site, or at two whose activations are two views of a token.

        Raises AnalysisError if an activation is not finite, or if widths differ.
        """
        stacked = []
        for site in sites:
            rows = finite_rows(batch, site, self._width).float().cpu()
            self._width = rows.shape[1]
            stacked.append(rows)
        rows, ids, positions = torch.stack(stacked, 1), batch.row_ids, batch.positions
        self._token_texts = batch.token_texts
        end = 0
        for number, length in zip(batch.prompts.tolist(), batch.mask.sum(1).tolist(), strict=True):
            start, end = end, end + length
            examples, places = self._examples(rows[start:end], positions[start:end])
            self._document(Document(number, ids[start:end].tolist(), examples, places))

    def end(self) -> Examples:
        """All that was collected. Raises AnalysisError if there is nothing to train on, or nothing to measure by."""
        if self._held:
            self._limit()
        wanted = max(1, round(self._share * self._measurable))
        cut = max(0, min(wanted, len(self._held), self._measurable - 1))
        while 0 < cut < len(self._held) and self._held[cut][0] == self._held[cut - 1][0]:
            cut += 1  # the same document once more
        chosen, rest = self._held[:cut], self._held[cut:]
        for _, document in rest:
            self._keep(document)
        self._prune()
        held = sorted((document for _, document in chosen), key=lambda each: each.number)
        training = torch.cat(self._kept) if self._kept else torch.empty(0)
        if not held or not len(training):
            raise AnalysisError(
                f"Of {self.documents} documents with {self.tokens} tokens nothing is left to "
                f"{'measure by' if len(training) else 'train on'}; give more and longer prompts, no two "
                "of them the same, or a recording of such: some of them are held out."
            )
        about = torch.cat(self._about)
        return Examples(training, about, held, self.documents, self.tokens, self.seen, self._token_texts)

    def _examples(self, rows: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counted = positions >= self._skip
        rows, positions = rows[counted], positions[counted]
        if self._views != "segments":
            return rows, positions
        half = len(rows) // 2
        if half == 0:
            return rows.new_empty(0, 2, rows.shape[-1]), positions[:0]
        means = torch.cat([rows[:half].mean(0), rows[half:].mean(0)])
        return means[None], positions[:1]

    def _document(self, document: Document) -> None:
        """Those whose digests are the least are held out: at first all, then fewer as more come."""
        self.documents += 1
        self.tokens += len(document.ids)
        if not len(document.examples):
            return
        self._measurable += 1
        digest = hashlib.sha256(str(document.ids).encode()).digest()
        if self._bound is not None and digest >= self._bound:
            self._keep(document)
            return
        self._held.append((digest, document))
        self._held_tokens += len(document.ids)
        if self._held_tokens > 2 * self._most_held:
            self._limit()

    def _limit(self) -> None:
        """What does not fit goes to the training, the greatest digests first; but for the least, however long it is."""
        self._held.sort(key=lambda pair: (pair[0], pair[1].number))
        while self._held_tokens > self._most_held and (last := self._held[-1][0]) != self._held[0][0]:
            self._bound = last
            while self._held[-1][0] == last:
                _, gone = self._held.pop()
                self._held_tokens -= len(gone.ids)
                self._keep(gone)

    def _keep(self, document: Document) -> None:
        examples = document.examples
        self.seen += len(examples)
        self._kept.append(examples)
        self._about.append(document.about)
        self._chances.append(torch.rand(len(examples), generator=self._generator))
        self._kept_bytes += 4 * examples.numel()
        if self._kept_bytes > 1.5 * self._memory:
            self._prune()

    def _prune(self) -> None:
        """Of more examples than fit, those with the least numbers, which were drawn for each."""
        most = max(2, int(self._memory // (4 * max(1, self._kept[0][0].numel())))) if self._kept else 0
        if sum(map(len, self._kept)) <= most:
            return
        examples, chances = torch.cat(self._kept), torch.cat(self._chances)
        chosen = chances.argsort()[:most].sort().values
        self._kept, self._chances = [examples[chosen]], [chances[chosen]]
        self._about = [torch.cat(self._about)[chosen]]
        self._kept_bytes = 4 * self._kept[0].numel()
