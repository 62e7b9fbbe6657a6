"""Texts to train on and to measure by, each a sequence of tokens of its own length, some of them held out.

They come from a file, from the prompts, from the model's own writing, or are uniformly random tokens. Texts are held
out by what is in them, so that one that is there twice is never on both sides. What begins and ends a text is not among
its tokens: `start` and `end` say what the model has for that, and a text is over where its end stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.batches import Batches
from probekit_plugins.continued import until_end
from probekit_plugins.head import predicted_tokens
from probekit_plugins.lines import lines
from probekit_plugins.texts import around, beginning, encoded
from probekit_plugins.writing import can_generate, written_pieces

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.corpus_options import CorpusOptions

# With fewer prompts the model writes texts of its own.
FEWEST = 10
USUAL_LENGTH = 64
# The model writes so many tokens in one batch of texts.
WRITTEN_AT_ONCE = 2048
RANDOM = "random"
# Where texts come from that are made here.
DRAWN = "uniformly random tokens"
WRITTEN = "what the model writes itself"

Rows = list[list[int]]


@dataclass(frozen=True)
class Texts:
    """Token ids `[n, T]`, on the CPU, 0 past a text's end, and how many tokens each has, `[n]`."""

    ids: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Texts:
        """Of token ids, one row for each text."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        ids = torch.zeros(len(rows), int(lengths.max()) if len(rows) else 0, dtype=torch.long)
        for row, into in zip(rows, ids, strict=True):
            into[: len(row)] = torch.tensor(row, dtype=torch.long)
        return cls(ids, lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: torch.Tensor | slice) -> Texts:
        """Some of them, no longer than the longest of these."""
        lengths = self.lengths[rows]
        return Texts(self.ids[rows, : int(lengths.max()) if len(lengths) else 0], lengths)

    @property
    def mask(self) -> torch.Tensor:
        """1 at a text's tokens, 0 past its end, `[n, T]`."""
        return (torch.arange(self.ids.shape[1]) < self.lengths[:, None]).long()

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return int(self.lengths.sum())

    def rows(self) -> list[list[int]]:
        """The token ids of each text."""
        return [row[:length].tolist() for row, length in zip(self.ids, self.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class Corpus:
    """Texts to train on, and those that are held out; `source` says where they come from."""

    training: Texts
    held_out: Texts
    source: str


def start(subject: Subject) -> list[int]:
    """What stands before a text: as the tokenizer begins one, or else what ends texts, which stands between them; the
    token 0 where there is neither.
    """
    last = end(subject)
    return beginning(subject) or [0 if last is None else last]


def end(subject: Subject) -> int | None:
    """The token that ends a text, if the model has one."""
    sources = (
        subject.tokenizer,
        getattr(subject.model, "generation_config", None),
        getattr(subject.model, "config", None),
    )
    for source in sources:
        found = getattr(source, "eos_token_id", None)
        found = found[0] if isinstance(found, list | tuple) and found else found
        if isinstance(found, int) and 0 <= found < predicted_tokens(subject):
            return found
    return None


def corpus(
    subject: Subject, prompts: Sequence[Prompt], options: CorpusOptions, context: Context, beside: int = 1
) -> Corpus:
    """The texts that the options say; `beside` are the positions that the context must have beside a text's own and
    those of what the tokenizer begins it with.

    Which texts are held out does not depend on their order. Raises UsageError with one sentence if a file cannot be
    read, if no tokenizer is there to read it, if a token is one that the model does not predict, if the context has no
    room for a text of the length that is asked for, or if too few texts are left to train on or to measure by.
    """
    length = _length(subject, options.length, beside)
    named, held = options.held_out_texts, []
    if named is not None:  # before the model writes any
        held = list(map(list, dict.fromkeys(map(tuple, _of_file(subject, named, "held_out_texts", length)))))
        if len(held) < 2:
            raise UsageError(f"Of the texts '{named}' {len(held)} can be measured by; give two or more, not the same.")
    rows, source = _rows(subject, prompts, options, context, length)
    if named is None:
        held = _held_out(rows, options.held_out)
    known = set(map(tuple, held))
    training = [row for row in rows if tuple(row) not in known]
    if not training or len(held) < 2:
        made = source in (DRAWN, WRITTEN)
        more = "let longer ones be made (-o length=…)" if made else "give more of them, no two the same"
        raise UsageError(
            f"Of {len(rows)} texts ({source}) {len(training)} are left to train on and {len(held)} to measure by; "
            f"{more}."
        )
    chosen = Texts.of(held)
    if len(chosen) > options.measured:
        chosen = chosen[torch.arange(options.measured) * len(chosen) // options.measured]
    return Corpus(Texts.of(training), chosen, source)


def _length(subject: Subject, asked: int | None, beside: int) -> int:
    """Most tokens of a text: as asked, or the usual number if the context has room for it."""
    if subject.context is None:
        return asked or USUAL_LENGTH
    beside += len(beginning(subject))
    room = subject.context - beside
    if room < 1:
        raise UsageError(
            f"The model's context is {subject.context}, which has no room for a text: {beside} positions stand beside "
            "it."
        )
    if asked is not None and asked > room:
        raise UsageError(
            f"A text is to have {asked} tokens, and {beside} positions stand beside it, but the model's context is "
            f"{subject.context}; cut shorter ones (-o length={room})."
        )
    return min(asked or USUAL_LENGTH, room)


def _rows(
    subject: Subject, prompts: Sequence[Prompt], options: CorpusOptions, context: Context, length: int
) -> tuple[Rows, str]:
    if options.texts == RANDOM:
        return _random(subject, options, context, length), DRAWN
    if options.texts is not None:
        return _of_file(subject, options.texts, "texts", length), "the file of texts"
    own = _own(subject)
    if len(prompts) >= FEWEST:
        rows = [row[:length] for prompt in prompts if (row := own(prompt.input_ids[0].tolist()))]
        _check(subject, rows, "The prompts")
        return rows, "the prompts"
    if not can_generate(subject) or subject.anatomy.sequence is not None:
        raise UsageError(f"This model writes no texts; give some (-o texts=FILE), or {FEWEST} prompts.")
    if options.length is None:
        length = min(length, USUAL_LENGTH // 2)
    if length == 1 and not beginning(subject):
        raise UsageError(
            "Texts that this model writes begin with the prompt's first token, so with one token they are all the "
            "same; let it write longer ones (-o length=2), or give texts (-o texts=FILE)."
        )
    label = "texts to train on"
    memory = Batches(context, options)
    at_once = max(1, WRITTEN_AT_ONCE // length)
    found = written_pieces(subject, prompts[0], options.pieces, length, at_once, context, label, memory)
    sizes, padding = _lengths(options, length, context), _padding(subject)
    cut = [own(row[:size]) for row, size in zip(found.tolist(), sizes, strict=True)]
    return [row for row in cut if row and padding not in row], WRITTEN


def _lengths(options: CorpusOptions, length: int, context: Context) -> list[int]:
    """How many tokens each text has that is drawn or that the model writes, before its end is cut off."""
    shortest = min(options.shortest or length, length)
    drawn: list[int] = torch.randint(
        shortest, length + 1, (options.pieces,), generator=context.generator("lengths of texts")
    ).tolist()
    return drawn


def _random(subject: Subject, options: CorpusOptions, context: Context, length: int) -> Rows:
    """Of all tokens that a text may hold: what ends it is none of them."""
    tokens = torch.arange(predicted_tokens(subject))
    for other in (end(subject), _padding(subject)):
        tokens = tokens[tokens != (-1 if other is None else other)]
    if len(tokens) < 2:
        raise UsageError("Random texts need two tokens to draw from; this model has fewer. Give texts (-o texts=FILE).")
    ids = torch.randint(len(tokens), (options.pieces, length), generator=context.generator("random texts"))
    sizes = _lengths(options, length, context)
    return [row[:size] for row, size in zip(tokens[ids].tolist(), sizes, strict=True)]


def _own(subject: Subject) -> Callable[[list[int]], list[int]]:
    """What leaves of token ids a text's own: without what the tokenizer puts around it, up to where it ends."""
    before, after = around(subject)
    last = end(subject)
    before = before or ([] if last is None else [last])

    def own(ids: list[int]) -> list[int]:
        if before and ids[: len(before)] == before:
            ids = ids[len(before) :]
        if after and ids[-len(after) :] == after:
            ids = ids[: -len(after)]
        return until_end(ids, last)

    return own


def _of_file(subject: Subject, name: str, option: str, length: int) -> Rows:
    if subject.tokenizer is None:
        raise UsageError(f"This model has no tokenizer, so it cannot be given texts; leave out -o {option}.")
    own = _own(subject)
    rows = [ids[:length] for line in lines(name) if (ids := own(encoded(subject, line, False)))]
    _check(subject, rows, f"The texts '{name}'")
    return rows


def _check(subject: Subject, rows: Rows, what: str) -> None:
    """Raise UsageError with one sentence if a text has a token that no text of this model may have."""
    tokens, padding = set().union(*rows), _padding(subject)
    outside = next((token for token in sorted(tokens) if not 0 <= token < predicted_tokens(subject)), None)
    if outside is not None:
        raise UsageError(f"{what} have a token, {outside}, that this model does not predict.")
    if padding in tokens:
        raise UsageError(
            f"{what} have the padding token, {padding}, and this model takes positions or masks from where that stands."
        )


def _padding(subject: Subject) -> int | None:
    """The padding token, where the model reads where it stands, so that no text may hold it."""
    config = getattr(subject.model, "config", None)
    token = getattr(getattr(config, "get_text_config", lambda: config)(), "pad_token_id", None)
    if not isinstance(token, int) or not 0 <= token < subject.vocabulary:
        return None
    try:
        subject.check_ids([token] * (subject.anatomy.sequence or 1))
    except UsageError:
        return token
    return None


def _held_out(rows: Rows, share: float) -> Rows:
    """Of the different texts those whose digests are the least, at least two, but never all."""
    different = sorted(set(map(tuple, rows)), key=lambda row: hashlib.sha256(str(list(row)).encode()).digest())
    wanted = min(max(2, round(share * len(different))), len(different) - 1)
    return [list(row) for row in different[: max(0, wanted)]]
