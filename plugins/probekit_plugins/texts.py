"""Text to train on or to measure: a file cut into pieces of tokens, each begun as the tokenizer begins a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.head import predicted_tokens

if TYPE_CHECKING:
    from probekit import Subject


def around(subject: Subject) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text, such as `<s>` and `</s>`; often nothing."""
    if subject.tokenizer is None:
        return [], []
    plain, whole = (encoded(subject, "a", special) for special in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def beginning(subject: Subject) -> list[int]:
    """What the tokenizer puts before a text, such as `<s>`; often nothing."""
    return around(subject)[0]


def piece_length(subject: Subject, asked: int | None, usual: int, option: str) -> int:
    """Tokens of a piece, without what begins it: as asked by the option of that name, or the usual number if the
    model's context has room for it. Raises UsageError if more are asked for than the context holds.
    """
    room = None if subject.context is None else subject.context - len(beginning(subject))
    if asked is None:
        return min(usual, room) if room is not None else usual
    if room is not None and asked > room:
        raise UsageError(
            f"A piece of text is to have {asked} tokens, but the model's context has room for {room}; "
            f"cut shorter ones (-o {option}={room})."
        )
    return asked


def pieces_of_file(subject: Subject, name: str, length: int, option: str) -> torch.Tensor:
    """All pieces of a UTF-8 file, in order, `[pieces, length]`, without what begins them; a rest is left out.

    Raises UsageError with one sentence if the file cannot be read, or is shorter than a piece, whose length the option
    of that name sets.
    """
    ids = ids_of_file(subject, name, "text")
    unpredicted = next((index for index in ids if index >= predicted_tokens(subject)), None)
    if unpredicted is not None:
        raise UsageError(f"The text '{name}' has a token, {unpredicted}, that this model embeds but never predicts.")
    if len(ids) < length:
        raise UsageError(
            f"The text '{name}' has {len(ids)} tokens, which is less than a piece of {length}; give a longer text or "
            f"cut shorter pieces (-o {option}=…)."
        )
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def ids_of_file(subject: Subject, name: str, option: str) -> list[int]:
    """The token ids of a UTF-8 file, without special tokens.

    Raises UsageError with one sentence if there is no tokenizer (the option of that name is to be left out then), if
    the file cannot be read, or if the model lacks one of its tokens.
    """
    path = Path(name)
    if subject.tokenizer is None:
        raise UsageError(f"This model has no tokenizer, so it cannot be given a text; leave out -o {option}.")
    try:
        ids = encoded(subject, path.read_text(encoding="utf-8-sig"), False)
    except OSError as error:
        raise UsageError(f"The text '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The text '{path}' is not UTF-8.") from None
    outside = next((index for index in ids if not 0 <= index < subject.vocabulary), None)
    if outside is not None:
        raise UsageError(f"The text '{path}' has a token, {outside}, that is outside the vocabulary of this model.")
    return ids


def spread_over(pieces: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many pieces, evenly spread."""
    if len(pieces) <= most:
        return pieces
    return pieces[torch.arange(most) * len(pieces) // most]


def begun(subject: Subject, pieces: torch.Tensor) -> torch.Tensor:
    """Pieces with what begins a text before each, where the model is."""
    start = torch.tensor(beginning(subject), dtype=torch.long).expand(len(pieces), -1)
    return torch.cat([start, pieces], 1).to(subject.device)


def encoded(subject: Subject, text: str, special_tokens: bool) -> list[int]:
    """The token ids of a text, however long or short it is."""
    ids: list[int] = subject.tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]  # type: ignore[misc]
    return ids
