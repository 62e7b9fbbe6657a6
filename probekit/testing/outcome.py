"""What a check came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One promise of an analysis: its short name, the promise as a sentence, and a sentence for each way in which it
    is broken.
    """

    name: str
    promise: str
    problems: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """The sentences of all problems; empty if the promise is kept."""
        return " ".join(self.problems)


class CannotJudgeError(Exception):
    """A check came to no judgement; its text is the sentence that says why."""
