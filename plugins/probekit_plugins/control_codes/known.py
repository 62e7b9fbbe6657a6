"""Texts whose code is known: read from each code's file, cut, and some of them held out by what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probekit import UsageError
from probekit_plugins.head import predicted_tokens
from probekit_plugins.lines import lines
from probekit_plugins.texts import encoded

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.control_codes import ControlCodesOptions
    from probekit_plugins.control_codes.prefixes import Prefix


@dataclass(frozen=True)
class Known:
    """Texts as token ids, each with the place of its code among `prefixes`: those to train on, and those measured.

    `counts` are the texts of each code that are trained on, and that are held out.
    """

    prefixes: list[Prefix]
    training: list[tuple[int, list[int]]]
    measured: list[tuple[int, list[int]]]
    counts: dict[str, tuple[int, int]]

    @property
    def codes(self) -> list[int]:
        """The code of each text that is measured."""
        return [code for code, _ in self.measured]

    @property
    def ambiguous(self) -> int:
        """How many of those that are measured are the same as one of another code."""
        owners: dict[tuple[int, ...], set[int]] = {}
        for code, ids in self.measured:
            owners.setdefault(tuple(ids), set()).add(code)
        return sum(len(owners[tuple(ids)]) > 1 for ids in self.texts)

    @property
    def texts(self) -> list[list[int]]:
        """The token ids of each text that is measured."""
        return [ids for _, ids in self.measured]


def known(subject: Subject, prefixes: Sequence[Prefix], options: ControlCodesOptions) -> Known | None:
    """The texts of the codes that have a file; None where fewer than two do, and nothing is to be told apart.

    Without fine-tuning nothing is held back: all texts are measured, at most so many as the options say. Raises
    UsageError with one sentence if a file cannot be read, too few texts are there, or one has no room in the context.
    """
    own = [prefix for prefix in prefixes if prefix.code is not None and prefix.code.texts is not None]
    if len(own) < 2:
        if options.steps or own:
            raise UsageError(
                f"{'Fine-tuning' if options.steps else 'Attribution'} takes texts of at least two codes, and "
                f"{len(own) or 'none'} has any; name a file for each "
                '(-o \'texts={Horror = "FILE", Legal = "FILE"}\', or `texts` in the file of codes).'
            )
        return None
    length = _length(subject, own, options.length)
    rows = [_read(subject, prefix, length) for prefix in own]
    held = [_held_out(ids, options.held_out) if options.steps else list(dict.fromkeys(ids)) for ids in rows]
    everywhere = {text for texts in held for text in texts} if options.steps else set()
    training = [[text for text in texts if text not in everywhere] for texts in rows]
    for prefix, texts, kept, out in zip(own, rows, training, held, strict=True):
        if (options.steps and not kept) or not out:
            raise UsageError(
                f"Of the {len(texts)} texts of the code '{prefix.name}' {len(kept)} are left to train on and "
                f"{len(out)} to measure by; give more of them, no two the same."
            )
    measured = [_thinned(texts, options.measured) for texts in held]
    return Known(
        own,
        [(code, list(text)) for code, texts in enumerate(training) for text in texts] if options.steps else [],
        [(code, list(text)) for code, texts in enumerate(measured) for text in texts],
        {
            prefix.name: (len(kept) if options.steps else 0, len(out))
            for prefix, kept, out in zip(own, training, measured, strict=True)
        },
    )


def _thinned(texts: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """At most so many, evenly spread."""
    kept = min(most, len(texts))
    return [texts[place * len(texts) // kept] for place in range(kept)]


def _length(subject: Subject, own: Sequence[Prefix], length: int) -> int:
    """Tokens that a text is cut to: as many as asked for, or as the context has room for behind the longest code."""
    if subject.context is None:
        return length
    longest = max(own, key=lambda prefix: len(prefix.ids))
    if (room := subject.context - len(longest.ids)) < 2:
        raise UsageError(
            f"The model's context is {subject.context}, and the code '{longest.name}' takes {len(longest.ids)} of it, "
            "which leaves no room for its texts; give it a shorter template."
        )
    return min(length, room)


def _read(subject: Subject, prefix: Prefix, length: int) -> list[tuple[int, ...]]:
    """The texts of one code, cut to so many tokens."""
    assert prefix.code is not None
    if subject.tokenizer is None:
        raise UsageError(f"This model has no tokenizer, so it cannot be given texts of the code '{prefix.name}'.")
    found = [tuple(ids) for text in lines(str(prefix.code.texts)) if (ids := encoded(subject, text, False)[:length])]
    outside = max((max(ids) for ids in found), default=0)
    if outside >= predicted_tokens(subject):
        raise UsageError(f"The texts of '{prefix.name}' have a token, {outside}, that this model does not predict.")
    return found


def _held_out(texts: Sequence[tuple[int, ...]], share: float) -> list[tuple[int, ...]]:
    """Of the different texts those whose digests are the least."""
    different = sorted(set(texts), key=lambda text: hashlib.sha256(str(text).encode()).digest())
    return different[: max(1, round(share * len(different)))]
