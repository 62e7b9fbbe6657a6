"""Checks of what an analysis does while it computes: to its result, to the process, to the model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probekit.testing.case import Case
from probekit.testing.tiny import tiny_subject
from probekit.testing.untouched import fingerprint

if TYPE_CHECKING:
    from probekit.subject import Subject


class CrashError(RuntimeError):
    """Raised on purpose by a module of the model."""


class Interrupt(KeyboardInterrupt):
    """Ctrl-C on purpose, told apart from a person's."""


FAILURES: tuple[tuple[int, type[BaseException]], ...] = ((1, CrashError), (2, Interrupt), (5, CrashError))


def repeats(case: Case) -> Iterator[str]:
    """Where two runs with one seed differ, begun in different states of the global generators."""
    files = []
    for state in (1, 2):
        with _global_generators(state):
            files.append(case.encode(case.run(tiny_subject()).result))
    if files[0] != files[1]:
        yield (
            f"Two runs with the same seed give different results: {_difference(*files)}; draw from "
            "self.context.generator(), and put no times into the result but in its `seconds`."
        )


@contextmanager
def _global_generators(state: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators in a state of their own, while the block is open."""
    import numpy
    import torch

    python, array = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(state)
            numpy.random.seed(state)
            torch.manual_seed(state)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)


def _difference(first: Mapping[str, bytes], second: Mapping[str, bytes]) -> str:
    """The parts of a result that differ between two of them."""
    from safetensors.numpy import load

    parts: list[str] = []
    for file in first:
        if first[file] == second[file]:
            continue
        if file.endswith(".json"):
            parts += _different(json.loads(first[file]), json.loads(second[file]))
        else:
            before, after = load(first[file]), load(second[file])
            parts += [
                f"tensors '{name}'"
                for name in sorted({*before, *after})
                if name not in before or name not in after or before[name].tobytes() != after[name].tobytes()
            ]
    return ", ".join(parts)


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in first:
        if first[key] == second[key]:
            continue
        if isinstance(first[key], dict):
            names = sorted({*first[key], *second[key]})
            yield from (f"{key} '{name}'" for name in names if first[key].get(name) != second[key].get(name))
        else:
            yield key


def leaves_no_state(case: Case) -> Iterator[str]:
    """What a run changes of the process, and what it prints."""
    ran = case.run(tiny_subject())
    for change in ran.changed:
        yield f"run() changes {change}; put it back, also where the run fails."
    if ran.printed:
        yield f"run() prints {ran.printed.strip()[:60]!r} on standard output; use self.context.log()."


def leaves_no_trace(case: Case) -> Iterator[str]:
    """What a run, whole or interrupted, leaves behind on a model."""
    for training, kind in ((False, "a loaded model"), (True, "a model in training")):
        subject = tiny_subject(training=training)
        before = fingerprint(subject.model)
        case.run(subject)
        yield from _traces(before, fingerprint(subject.model), f"on {kind}")
    for call, failure in FAILURES:
        subject = tiny_subject()
        with _Failing(subject, call, failure) as failing:
            before = fingerprint(subject.model)
            came_out = failing.run(case)
            yield from _traces(before, fingerprint(subject.model), f"that failed in a module's call {call}")
        if failing.raised and failure is Interrupt and not isinstance(came_out, KeyboardInterrupt):
            yield "run() goes on after a KeyboardInterrupt; catch Exception at most, so that a run can be stopped."


class _Failing:
    """While it is open, the first block raises at its n-th call of `run`: the hook itself is there before and after."""

    def __init__(self, subject: Subject, call: int, failure: type[BaseException]) -> None:
        self._subject, self._left, self._failure = subject, call, failure
        self._armed = False
        self.raised = False

    def __enter__(self) -> _Failing:
        self._handle = self._subject.anatomy.blocks[0].register_forward_hook(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _hook(self, *_: object) -> None:
        if not self._armed:
            return
        self._left -= 1
        if self._left == 0:
            self.raised = True
            raise self._failure("on purpose")

    def run(self, case: Case) -> BaseException | None:
        """What came out of a run, which may deal with a failure as it likes, but for an interrupt."""
        self._armed = True
        try:
            case.run_unjudged(self._subject)
        except (Interrupt, Exception, SystemExit) as error:
            return error
        finally:
            self._armed = False
        return None


def _traces(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> Iterator[str]:
    for what, was in before.items():
        if after[what] == was:
            continue
        parts = (
            sorted(_part(key) for key in {*was, *after[what]} if was.get(key) != after[what].get(key))
            if isinstance(was, dict)
            else []
        )
        named = f", at {', '.join(parts[:3])}{' and more' if len(parts) > 3 else ''}" if parts else ""
        yield f"After a run {where}, the model's {what} are not what they were{named}."


def _part(key: str | tuple[str, str]) -> str:
    name = key if isinstance(key, str) else key[0]
    return name or "the model itself"
