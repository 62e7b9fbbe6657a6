"""Phases: one of them is always on, so that their times sum to the whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

# The phases of every run; each analysis is one more, by its name.
START_UP = "start-up of Python"
OPTIONS = "plugins and options"
LOADING = "loading the model"
PROMPTS = "tokenising prompts"
PASSES = "passes over the prompts"
CHECKS = "checking that the model is as it was"
SAVING = "saving"
DRAWING = "drawing the report"
IMPORTING = "importing packages"
BETWEEN = "everything else"
ITSELF = "the profile itself"


@dataclass
class Phase:
    """What passed in one phase, in seconds and in the most bytes that were there at once; the latter are 0 where nobody
    tells.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    resident: int = 0
    anonymous: int = 0
    cuda: int = 0

    def see(self, resident: int, anonymous: int) -> None:
        """There is so much memory now."""
        self.resident = max(self.resident, resident)
        self.anonymous = max(self.anonymous, anonymous)


class Phases:
    """A clock whose time goes to the innermost phase that is open. `leaving` is told which phase has just ended a
    stretch, to note what memory it came to.
    """

    def __init__(self, leaving: Callable[[Phase], None] = lambda phase: None) -> None:
        self._leaving = leaving
        self._by_name: dict[str, Phase] = {}  # first what belongs to none
        self._open = [self._named(BETWEEN)]
        self._began = self._since = time.perf_counter()
        self._cpu = time.process_time()

    @property
    def now(self) -> Phase:
        """The phase that is on."""
        return self._open[-1]

    @property
    def seconds(self) -> float:
        """What passed since the beginning."""
        return time.perf_counter() - self._began

    def before(self, name: str, seconds: float, cpu_seconds: float) -> None:
        """What had passed before this clock was made."""
        phase = self._named(name)
        phase.seconds += seconds
        phase.cpu_seconds += cpu_seconds
        self._began -= seconds

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """A phase, entered again if it has been there before."""
        depth = self.enter(name)
        try:
            yield
        finally:
            self.leave(depth)

    def enter(self, name: str) -> int:
        """Begin a phase; give what this returns to `leave`."""
        self._charge()
        self._open.append(self._named(name))
        return len(self._open) - 1

    def leave(self, depth: int) -> None:
        """End a phase, and those inside it that an alarm or an interrupt kept from ending."""
        self._charge()
        del self._open[depth:]

    def document(self) -> list[dict[str, Any]]:
        """Every phase in which something passed, in the order in which they began; last what belongs to none."""
        self._charge()
        between, *others = self._by_name.values()
        return [asdict(phase) for phase in (*others, between) if phase.seconds]

    def _named(self, name: str) -> Phase:
        return self._by_name.setdefault(name, Phase(name))

    def _charge(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        phase = self._open[-1]
        phase.seconds += now - self._since
        phase.cpu_seconds += cpu - self._cpu
        self._since, self._cpu = now, cpu
        self._leaving(phase)
