"""Given text: a file cut into pieces of tokens, each begun as the tokenizer begins a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from probekit import UsageError

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.repetition import RepetitionOptions

LONGEST = 256


def beginning(subject: Subject) -> list[int]:
    """What the tokenizer puts before a text, such as `<s>`; often nothing."""
    if subject.tokenizer is None:
        return []
    plain, whole = (_encoded(subject, "a", special) for special in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def piece_length(subject: Subject, options: RepetitionOptions) -> int:
    """Tokens of a piece, without what begins it. Raises UsageError if that is more than the model's context holds."""
    room = None if subject.context is None else subject.context - len(beginning(subject))
    if options.text_length is None:
        return min(LONGEST, room) if room is not None else LONGEST
    if room is not None and options.text_length > room:
        raise UsageError(
            f"A piece of text is to have {options.text_length} tokens, but the model's context has room for {room}; "
            f"cut shorter ones (-o text_length={room})."
        )
    return options.text_length


def pieces_of_file(subject: Subject, options: RepetitionOptions) -> torch.Tensor:
    """All pieces of the file, in order, `[pieces, length]`, without what begins them; a rest is left out.

    Raises UsageError with one sentence if the file cannot be read, or is shorter than a piece.
    """
    path, length = Path(options.text or ""), piece_length(subject, options)
    if subject.tokenizer is None:
        raise UsageError("This model has no tokenizer, so it cannot be given a text; leave out -o text.")
    try:
        ids = _encoded(subject, path.read_text(encoding="utf-8-sig"), False)
    except OSError as error:
        raise UsageError(f"The text '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The text '{path}' is not UTF-8.") from None
    if len(ids) < length:
        raise UsageError(
            f"The text '{path}' has {len(ids)} tokens, which is less than a piece of {length}; give a longer text or "
            "cut shorter pieces (-o text_length=…)."
        )
    outside = next((index for index in ids if not 0 <= index < subject.vocabulary), None)
    if outside is not None:
        raise UsageError(f"The text '{path}' has a token, {outside}, that is outside the vocabulary of this model.")
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def spread_over(pieces: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many pieces, evenly spread."""
    if len(pieces) <= most:
        return pieces
    return pieces[torch.arange(most) * len(pieces) // most]


def begun(subject: Subject, pieces: torch.Tensor) -> torch.Tensor:
    """Pieces with what begins a text before each, where the model is."""
    start = torch.tensor(beginning(subject), dtype=torch.long).expand(len(pieces), -1)
    return torch.cat([start, pieces], 1).to(subject.device)


def _encoded(subject: Subject, text: str, special_tokens: bool) -> list[int]:
    ids: list[int] = subject.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]  # type: ignore[misc]
    return ids
