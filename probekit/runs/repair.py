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
            of_tokenizer = kept.put_back()
            found, whole = trace.put_back()
            found, whole = [*found, *of_tokenizer], whole and not of_tokenizer
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
        self._tokenizer = _Tokenizer(subject.tokenizer)

    def put_back(self) -> list[str]:
        """What could not be put back, in words."""
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
        return self._tokenizer.put_back()


# What a tokenizer makes of it shows most of how it is set: capitals, spaces, accents, and tokens that were added.
PROBE = "The sky is  blue.\n<s> e\u0301 \u00e9 \u5929 1984 <|endoftext|></s>"


class _Tokenizer:
    """A tokenizer's attributes, which are put back, and how it reads a text, which tells whether it is another."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._attributes = dict(getattr(tokenizer, "__dict__", {}))
        copied = (list, dict, set)
        self._contents = {key: copy.copy(value) for key, value in self._attributes.items() if type(value) in copied}
        self._reads = self._read()

    def _read(self) -> Any:
        if self._tokenizer is None:
            return None
        try:
            return len(self._tokenizer), self._tokenizer.encode(PROBE, add_special_tokens=True)
        except Exception as error:  # of a tokenizer that cannot, or cannot any more
            return type(error).__name__

    def put_back(self) -> list[str]:
        """That it is another, if it still is after its attributes have been put back."""
        if self._attributes:
            now = self._tokenizer.__dict__
            if now.keys() != self._attributes.keys() or any(now[key] is not self._attributes[key] for key in now):
                now.clear()
                now.update(self._attributes)
            for key, contents in self._contents.items():
                value = self._attributes[key]
                if value != contents:
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(contents)
        return [] if self._read() == self._reads else ["another tokenizer"]


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
