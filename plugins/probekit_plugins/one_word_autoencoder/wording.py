"""What stands around texts and vectors: what begins a text, and the source's words where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probekit import UsageError
from probekit_plugins.texts import beginning, encoded

if TYPE_CHECKING:
    from probekit import Subject

ENCODE = ("Encode this text into {k}-word length embedding: <text> ", " </text>\n<embedding>")
AGAIN = (
    "Encode these embedding and text into {k}-word length embedding: <embedding>",
    "</embedding> <text> ",
    " </text>\n<embedding>",
)
DECODE = ("Decode this embedding into text: <embedding>", "</embedding>\n")


@dataclass(frozen=True)
class Wording:
    """Token ids: `encode` before and behind a text, `again` before a vector, between it and a text, and behind that,
    `decode` before and behind a vector. Vectors are read behind the last of `encode` and of `again`.
    """

    start: list[int]
    encode: tuple[list[int], list[int]]
    again: tuple[list[int], list[int], list[int]]
    decode: tuple[list[int], list[int]]

    @property
    def longest(self) -> int:
        """Most tokens around a text, and the vectors that stand there."""
        return max(sum(map(len, parts)) for parts in (self.encode, self.again, self.decode))


def wording(subject: Subject, prompts: str, vectors: int) -> Wording:
    """The words of a preset for so many vectors, each part after what begins a text.

    Raises UsageError if the source's words are asked for and there is no tokenizer.
    """
    start = beginning(subject)
    if prompts == "none":
        return Wording(start, (start, []), (start, [], []), (start, []))
    if subject.tokenizer is None:
        raise UsageError("This model has no tokenizer, so it reads no words; leave out -o prompts=source.")

    def ids(part: str) -> list[int]:
        return encoded(subject, part.format(k=vectors), False)

    return Wording(
        start,
        (start + ids(ENCODE[0]), ids(ENCODE[1])),
        (start + ids(AGAIN[0]), ids(AGAIN[1]), ids(AGAIN[2])),
        (start + ids(DECODE[0]), ids(DECODE[1])),
    )
