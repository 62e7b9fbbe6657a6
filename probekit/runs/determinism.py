"""The same bits again: torch's deterministic algorithms while a run computes, and which operators have none.

Where torch has no deterministic algorithm, it computes as it can and says so; who computes then is told the operator's
name. Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from probekit.analysis import Result
from probekit.errors import one_line
from probekit.runs.state import fill_memory, put_back, read_state, set_deterministic

Told = Callable[[str], object]

# What torch warns of, and how the operator is called there.
WARNINGS = (
    re.compile(r"(?P<operator>\S+) does not have a deterministic implementation"),
    # Of these two the gradient differs from run to run; there is a deterministic one, which torch only takes if it may
    # raise wherever there is none.
    re.compile(r"(?P<operator>(?:Flash|Memory Efficient) Attention) defaults to a non-deterministic algorithm", re.I),
    re.compile(r"Deterministic behavior was enabled .* because it uses (?P<operator>CuBLAS)"),
)
FILTER = "(?s).*(deterministic implementation|non-deterministic algorithm|Deterministic behavior was enabled)"

# Who computes now, the innermost last. Of the whole process, as warnings are.
_computing: list[tuple[Told, ...]] = []
_listening: list[bool] = []


@contextmanager
def told(*listeners: Told) -> Iterator[None]:
    """While open, these are told the name of each operator that has no deterministic algorithm, at every call of it."""
    _computing.append(listeners)
    if _listening and not _is_first():  # somebody has put theirs before
        _put_first()
    try:
        yield
    finally:
        _computing.pop()


@contextmanager
def deterministic() -> Iterator[None]:
    """torch takes deterministic algorithms while open, and what it warns of reaches `told` in place of standard error.

    Memory that is not written yet is not filled, which takes time and which nothing here reads.
    """
    import torch

    always = torch.is_warn_always_enabled()
    names = ("torch's deterministic flag", "torch's filling of memory")
    before = {name: value for name, value in read_state().items() if name in names}
    try:
        with _listened():
            set_deterministic(1)
            fill_memory(False)
            if torch.cuda.is_available():  # of attention torch warns once in a process, and there only
                torch.set_warn_always(True)
            yield
    finally:
        put_back(before)
        torch.set_warn_always(always)


@contextmanager
def _listened() -> Iterator[None]:
    """Pass what torch warns of to those who compute, and all else to where it would have gone."""
    others: Callable[..., Any] = warnings.showwarning

    def show(message: Warning | str, *given: Any, **more: Any) -> None:
        for pattern in WARNINGS:
            if _computing and (found := pattern.match(str(message))):
                for listener in _computing[-1]:
                    listener(found["operator"])
                return
        others(message, *given, **more)

    _put_first()
    warnings.showwarning = show
    _listening.append(True)
    try:
        yield
    finally:
        _listening.pop()
        warnings.showwarning = others
        if not _listening:  # ours alone: libraries that were imported meanwhile have put in theirs
            filters: Any = warnings.filters
            filters[:] = [each for each in filters if not _is_ours(each)]


def _put_first() -> None:
    warnings.filterwarnings("always", FILTER, UserWarning)


def _is_first() -> bool:
    return bool(warnings.filters) and _is_ours(warnings.filters[0])


def _is_ours(entry: Any) -> bool:
    return bool(getattr(entry[1], "pattern", entry[1]) == FILTER)


def with_note(result: object, operators: Iterable[str]) -> object:
    """A result with a note that names the operators, if there are any; what is no result is as it was."""
    if not operators or not isinstance(result, Result):
        return result
    return replace(result, notes=[*result.notes, note(operators)])


def note(operators: Iterable[str]) -> str:
    """What a reader must know of a result that such operators have a part in."""
    named = ", ".join(one_line(operator) for operator in sorted(operators))
    return (
        f"torch has no deterministic algorithm here for: {named}. Two runs with the same seed may differ in the last "
        "digits, and in what follows from them."
    )
