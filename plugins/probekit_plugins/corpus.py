"""Texts to train on and to measure by, each a sequence of tokens of its own length, some of them held out.

They come from a file, from the prompts, from the model's own writing, or are uniformly random tokens. Texts are held
out by what is in them, so that one that is there twice is never on both sides. What begins and ends a text is not among
its tokens: `start` and `end` say what the model has for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.batches import Batches
from probekit_plugins.head import predicted_tokens
from probekit_plugins.texts import beginning, encoded, piece_length
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
    """The texts that the options say; `beside` are the positions that the context must have beside a text's own.

    Raises UsageError with one sentence if a file cannot be read, if no tokenizer is there to read it, if the context
    has no room for a text of the length that is asked for, or if too few texts are left to train on or to measure by.
    """
    length = piece_length(subject, options.length, USUAL_LENGTH, "length")
    room = None if subject.context is None else subject.context - len(beginning(subject)) - beside
    if room is not None and length > room:
        if options.length is not None or room < 1:
            raise UsageError(
                f"A text is to have {length} tokens, and {beside} positions stand beside it, but the model's context "
                f"is {subject.context}; cut shorter ones (-o length={max(room, 1)})."
            )
        length = room
    rows, source = _rows(subject, prompts, options, context, length)
    if options.held_out_texts is not None:
        held, training = _of_file(subject, options.held_out_texts, "held_out_texts", length), rows
        known = {tuple(row) for row in held}
        training = [row for row in training if tuple(row) not in known]
    else:
        training, held = _split(rows, options.held_out)
    if not training or len(held) < 2:
        raise UsageError(
            f"Of {len(rows)} texts ({source}) {len(training)} are left to train on and {len(held)} to measure by; give "
            "more of them, no two the same."
        )
    chosen = Texts.of(held)
    if len(chosen) > options.measured:
        chosen = chosen[torch.arange(options.measured) * len(chosen) // options.measured]
    return Corpus(Texts.of(training), chosen, source)


def _rows(
    subject: Subject, prompts: Sequence[Prompt], options: CorpusOptions, context: Context, length: int
) -> tuple[list[list[int]], str]:
    if options.texts == RANDOM:
        return _random(subject, options, context, length), "uniformly random tokens"
    if options.texts is not None:
        return _of_file(subject, options.texts, "texts", length), "the file of texts"
    if len(prompts) >= FEWEST:
        return [row[:length] for row in _of_prompts(subject, prompts)], "the prompts"
    if not can_generate(subject) or subject.anatomy.sequence is not None:
        raise UsageError(f"This model writes no texts; give some (-o texts=FILE), or {FEWEST} prompts.")
    if options.length is None:
        length = min(length, USUAL_LENGTH // 2)
    label = "texts to train on"
    memory = Batches(context, options)
    rows = max(1, WRITTEN_AT_ONCE // length)
    found = written_pieces(subject, prompts[0], options.pieces, length, rows, context, label, memory)
    sizes = _lengths(options, length, context)
    return [row[:size] for row, size in zip(found.tolist(), sizes, strict=True)], "what the model writes itself"


def _lengths(options: CorpusOptions, length: int, context: Context) -> list[int]:
    """How many tokens each text has that is drawn or that the model writes."""
    shortest = min(options.shortest or length, length)
    drawn: list[int] = torch.randint(
        shortest, length + 1, (options.pieces,), generator=context.generator("lengths of texts")
    ).tolist()
    return drawn


def _random(subject: Subject, options: CorpusOptions, context: Context, length: int) -> list[list[int]]:
    generator = context.generator("random texts")
    ids = torch.randint(predicted_tokens(subject), (options.pieces, length), generator=generator)
    last = end(subject)
    if last is not None:  # a text does not hold what ends it
        ids = torch.where(ids == last, (ids + 1) % predicted_tokens(subject), ids)
    sizes = _lengths(options, length, context)
    return [row[:size] for row, size in zip(ids.tolist(), sizes, strict=True)]


def _of_prompts(subject: Subject, prompts: Sequence[Prompt]) -> Iterable[list[int]]:
    first = beginning(subject)
    for prompt in prompts:
        ids: list[int] = prompt.input_ids[0].tolist()
        yield ids[len(first) :] if first and ids[: len(first)] == first and len(ids) > len(first) else ids


def _of_file(subject: Subject, name: str, option: str, length: int) -> list[list[int]]:
    if subject.tokenizer is None:
        raise UsageError(f"This model has no tokenizer, so it cannot be given texts; leave out -o {option}.")
    rows = [ids[:length] for line in lines(name) if (ids := encoded(subject, line, False))]
    outside = next((index for row in rows for index in row if not 0 <= index < predicted_tokens(subject)), None)
    if outside is not None:
        raise UsageError(f"The texts '{name}' have a token, {outside}, that this model does not predict.")
    return rows


def lines(name: str) -> list[str]:
    """The texts of a UTF-8 file: its lines that are not empty, or the `text` of each of its JSON lines.

    Raises UsageError with one sentence if the file cannot be read.
    """
    path = Path(name)
    try:
        content = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"The texts '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The texts '{path}' are not UTF-8.") from None
    found = [line.strip() for line in content if line.strip()]
    if path.suffix not in (".jsonl", ".ndjson"):
        return found
    texts = []
    for number, line in enumerate(found, 1):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        text = document.get("text") if isinstance(document, dict) else None
        if not isinstance(text, str):
            raise UsageError(f"Line {number} of '{path}' is no JSON object with a `text`.")
        texts.append(text)
    return texts


def _split(rows: list[list[int]], share: float) -> tuple[list[list[int]], list[list[int]]]:
    """Those whose digests are the least are held out, of each text all that are the same."""
    by_digest: dict[bytes, list[list[int]]] = {}
    for row in rows:
        by_digest.setdefault(hashlib.sha256(str(row).encode()).digest(), []).append(row)
    wanted = max(2, round(share * len(by_digest)))
    order = sorted(by_digest)
    held = {tuple(by_digest[digest][0]) for digest in order[:wanted]}
    training = [row for row in rows if tuple(row) not in held]
    return training, [by_digest[digest][0] for digest in order[:wanted]]
