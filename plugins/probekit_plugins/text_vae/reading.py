"""Texts as encoder and decoder read them: each by its own tokenizer, with what begins and ends a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from probekit import UsageError
from probekit_plugins import corpus as whole
from probekit_plugins.corpus import Corpus, Texts
from probekit_plugins.head import predicted_tokens

if TYPE_CHECKING:
    from probekit import Subject


@dataclass(frozen=True)
class Reader:
    """A tokenizer, None for the subject's own ids; what stands before a text, and what after it; how many tokens the
    model has that reads them.
    """

    tokenizer: Any
    start: list[int]
    end: list[int]
    vocabulary: int

    @classmethod
    def of(cls, subject: Subject) -> Reader:
        """As the subject reads texts."""
        last = whole.end(subject)
        return cls(None, whole.start(subject), [] if last is None else [last], predicted_tokens(subject))

    @classmethod
    def by(cls, tokenizer: Any, vocabulary: int, start: list[int] | None = None) -> Reader:
        """As a tokenizer of another model does; `start` is what its decoder begins with, where it is one."""
        plain, marked = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        places = [at for at in range(len(marked)) if marked[at : at + len(plain)] == plain]
        before, after = (marked[: places[0]], marked[places[0] + len(plain) :]) if places else ([], [])
        return cls(tokenizer, before if start is None else start, after, vocabulary)

    def read(self, texts: Texts, subject: Subject, length: int) -> Texts:
        """Texts of the subject's tokens in this tokenizer's, cut to `length`. Raises UsageError if one has none, or
        one that the model lacks.
        """
        if self.tokenizer is None:
            return texts
        written = [subject.text(row) for row in texts.rows()]
        rows = [ids[:length] for ids in self.tokenizer(written, add_special_tokens=False)["input_ids"]]
        empty = next((text for text, ids in zip(written, rows, strict=True) if not ids), None)
        if empty is not None:
            raise UsageError(f"The text {empty[:60]!r} has no tokens in the encoder's tokenizer; leave it out.")
        greatest = max(*self.start, *self.end, *(max(ids) for ids in rows))
        if greatest >= self.vocabulary:
            raise UsageError(
                f"The encoder's tokenizer gives a token, {greatest}, and the encoder has {self.vocabulary}: they do "
                "not belong together."
            )
        return Texts.of(rows)

    def framed(self, texts: Texts) -> Texts:
        """With what begins and ends each."""
        before, after = len(self.start), len(self.end)
        ids = torch.zeros(len(texts), before + texts.ids.shape[1] + after, dtype=torch.long)
        ids[:, :before] = torch.tensor(self.start, dtype=torch.long)
        ids[:, before : before + texts.ids.shape[1]] = texts.ids
        for place, token in enumerate(self.end):
            ids[torch.arange(len(texts)), before + texts.lengths + place] = token
        return Texts(ids, texts.lengths + before + after)

    def text(self, ids: list[int], subject: Subject) -> str:
        """Tokens as a text."""
        if self.tokenizer is None:
            return subject.text(ids) if ids else ""
        return str(self.tokenizer.decode(ids))


@dataclass(frozen=True)
class Batch:
    """The same texts for the encoder and for the decoder, without what begins and ends them; and how many words each
    has.
    """

    encoder: Texts
    decoder: Texts

    def __len__(self) -> int:
        return len(self.decoder)

    def __getitem__(self, rows: torch.Tensor | slice) -> Batch:
        return Batch(self.encoder[rows], self.decoder[rows])


@dataclass(frozen=True)
class Reading:
    """All texts, as they are read."""

    training: Batch
    held_out: Batch
    words: int
    """Words of the held-out texts, as they are separated by white space."""

    @classmethod
    def of(
        cls, corpus: Corpus, subject: Subject, encoder: Reader, decoder: Reader, lengths: tuple[int, int]
    ) -> Reading:
        """`lengths` are the most tokens that encoder and decoder take."""

        def batch(texts: Texts) -> Batch:
            return Batch(encoder.read(texts, subject, lengths[0]), decoder.read(texts, subject, lengths[1]))

        held = batch(corpus.held_out)
        words = sum(max(1, len(decoder.text(row, subject).split())) for row in held.decoder.rows())
        return cls(batch(corpus.training), held, words)


def without(texts: Texts, share: float, generator: torch.Generator) -> Texts:
    """Each token deleted with this chance, but for one of each text."""
    chances = torch.rand(texts.ids.shape, generator=generator)
    kept = (chances >= share) & texts.mask.bool()
    none = ~kept.any(1)
    kept[none, 0] = True
    order = (~kept).long().argsort(dim=1, stable=True)
    lengths = kept.sum(1)
    ids = texts.ids.gather(1, order)
    return Texts(torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, 0), lengths)
