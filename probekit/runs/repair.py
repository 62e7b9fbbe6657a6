"""The subject of a run as it was, after each analysis that had it: what was left is named, and put back.

A model whose weights were written into is loaded again, so that the analyses that follow have the one that was asked
for.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probekit.errors import AnalysisError
from probekit.runs.keeping import explain
from probekit.runs.loaded import Loaded

if TYPE_CHECKING:
    from probekit.subject import Subject

# What an analysis could put something else in place of.
PARTS = ("model", "tokenizer", "anatomy")


class Repair:
    """The subject that the analyses of a run work on, one after another."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._lost = ""

    @property
    def subject(self) -> Subject:
        """Raises AnalysisError if there is none any more."""
        if self.loaded.subject is None:
            raise AnalysisError(self._lost or "It needs the model itself, which a recording does not have.")
        return self.loaded.subject

    @contextmanager
    def afterwards(self, blame: Callable[[str], None]) -> Iterator[None]:
        """`blame` is called with a sentence if something is left on the model when the block ends."""
        if self.loaded.subject is None:
            yield
            return
        from probekit.forward import Trace

        trace, kept = Trace(self.loaded.subject.model), _Kept(self.loaded.subject)
        try:
            yield
        finally:
            kept.put_back()
            found, whole = trace.put_back()
            sums = trace.sums
            del trace, kept  # they hold the model, of which there must not be two
            if found:
                mended = "It was put back" if whole else self._load_again(sums)
                blame(f"left something on the model: {'; '.join(found)}. {mended}")

    def _load_again(self, sums: dict[str, Any]) -> str:
        """Replace the subject by a fresh one; says what came of it."""
        again = self.loaded.again
        self.loaded = Loaded(_Lost(self.loaded.facts), self.loaded.facts)
        if again is None:
            self._lost = "An analysis before changed its model."
            return "It cannot be loaded again"
        gc.collect()  # the subject that is gone, and what was computed with it, hold each other
        try:
            loaded = again()
            if loaded.subject is None or not _same(loaded.subject, sums):
                raise AnalysisError("what was loaded is not what it was")
        except Exception as error:
            self._lost = (
                f"An analysis before changed the weights, and the model could not be had again: {explain(error)}"
            )
            return "It could not be loaded again"
        self.loaded = loaded
        return "The model was loaded again"


def _same(subject: Subject, sums: dict[str, Any]) -> bool:
    from probekit.forward import Trace

    trace = Trace(subject.model)
    return list(trace.sums) == list(sums) and all(trace.sums[name] == sums[name] for name in sums)


class _Lost:
    """A source in place of one whose model is gone."""

    prompt_count = 0

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def expand_sites(self, grammar: str) -> list[str]:
        raise AnalysisError("There is no model any more, since an analysis before changed its weights.")

    def batches(self, sites: Sequence[str]) -> Iterator[Any]:
        raise AnalysisError("There is no model any more, since an analysis before changed its weights.")


class _Kept:
    """What belongs to a subject beside its model: its parts, its facts, and the lists of its anatomy."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._parts = {name: getattr(subject, name) for name in PARTS}
        self._names = set(vars(subject))
        self._facts = (subject.facts, copy.deepcopy(subject.facts))
        self._lists = [(value, list(value)) for value in vars(subject.anatomy).values() if isinstance(value, list)]

    def put_back(self) -> None:
        subject = self._subject
        for name in set(vars(subject)) - self._names:
            if callable(getattr(type(subject), name, None)):  # a method that was covered
                delattr(subject, name)
        for name, part in self._parts.items():
            setattr(subject, name, part)
        subject.facts, facts = self._facts
        subject.facts.clear()
        subject.facts.update(facts)
        for value, before in self._lists:
            value[:] = before


@contextmanager
def no_hooks_everywhere() -> Iterator[None]:
    """Raises AnalysisError, after taking them off, if hooks of every module were left when the block ends well."""
    from probekit.forward.trace import hooks_everywhere, put_back_everywhere

    before = hooks_everywhere()
    try:
        yield
    finally:
        left = put_back_everywhere(before)
    if left:
        raise AnalysisError("It left hooks of every module, which were taken off.")
