"""What passes in the loops and stages of an analysis: whole, by itself, and how its steps are distributed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

# Of a longer loop, every so many steps, evenly spaced.
MOST_STEPS_KEPT = 1024
# Loops and stages that are told apart; what comes later is summed up.
MOST_SPANS = 60
OTHERS = "others"


@dataclass
class Steps:
    """Seconds of steps: all of them counted, some kept, evenly spaced."""

    count: int = 0
    seconds: list[float] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """`count` steps took so many seconds together."""
        self.count += count
        if self._seen % self._every == 0:
            self.seconds.append(seconds / max(1, count))
        self._seen += 1
        if len(self.seconds) > MOST_STEPS_KEPT:
            self.seconds = self.seconds[::2]
            self._every *= 2

    def percentiles(self) -> tuple[float, float, float] | None:
        """The 10th, 50th and 90th, or None where there is no step."""
        if not self.seconds:
            return None
        if len(self.seconds) == 1:
            return (self.seconds[0],) * 3
        tenths = quantiles(self.seconds, n=10, method="inclusive")
        return tenths[0], tenths[4], tenths[8]


@dataclass
class Span:
    """A loop or a stage of an analysis, over all the times that it was there."""

    analysis: str
    label: str
    kind: str
    seconds: float = 0.0
    own_seconds: float = 0.0
    """Without the loops inside it."""
    steps: Steps = field(default_factory=Steps)

    def document(self) -> dict[str, Any]:
        low, median, high = self.steps.percentiles() or (None, None, None)
        return {
            "analysis": self.analysis,
            "label": self.label,
            "kind": self.kind,
            "seconds": self.seconds,
            "own_seconds": self.own_seconds,
            "steps": self.steps.count,
            "low": low,
            "median": median,
            "high": high,
        }


class Running:
    """A span while it is open: a loop of `total` steps that began at step `taken`, or a stage."""

    def __init__(self, span: Span, total: int | None = None, taken: int = 0) -> None:
        self.span = span
        self.total = total
        self.taken = taken
        self.calls = 0
        """How often a step was said to be over; a step may be several at once, as a batch of prompts is."""
        self.inside = 0.0
        self.has_inner = False
        self._began = self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has been open."""
        return time.perf_counter() - self._began

    def step(self, count: int) -> float:
        """The seconds that the step took which is over."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.taken += count
        self.calls += 1
        return seconds

    def again(self) -> float:
        """The next step begins now; the seconds since the last ended."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def end(self) -> float:
        """The seconds that it was open."""
        seconds = time.perf_counter() - self._began
        self.span.seconds += seconds
        self.span.own_seconds += max(0.0, seconds - self.inside)
        return seconds


class Spans:
    """Every loop and stage of a run. `stepped` is told of each step that ends, and may look into some that follow:
    whether the one that ended was looked into. `ended` is told where a loop begins or ends, and with it such a look.
    """

    def __init__(self, stepped: Callable[[Running, float], bool], ended: Callable[[], None]) -> None:
        self._stepped, self._ended = stepped, ended
        self._by_name: dict[tuple[str, str, str], Span] = {}
        self._open: list[Running] = []

    @contextmanager
    def within(
        self, analysis: str, label: str, kind: str, total: int | None = None, taken: int = 0
    ) -> Iterator[Running]:
        """A loop or a stage; one of the same name goes on where the last ended."""
        if kind == "loop":
            self._ended()
            for outer in self._open:
                outer.has_inner = True
        running = Running(self._named(analysis, label, kind), total, taken)
        self._open.append(running)
        try:
            yield running
        finally:
            self._open.remove(running)
            running.again()
            try:
                if kind == "loop":
                    self._ended()
            finally:
                running.inside += running.again()
                seconds = running.end()
                for outer in reversed(self._open if kind == "loop" else []):
                    outer.inside += seconds
                    if outer.span.kind == "loop":
                        break

    def step(self, running: Running, count: int) -> None:
        """A step of it is over; one that was looked into is counted, and its time is not."""
        seconds = running.step(count)
        if self._stepped(running, seconds):
            running.span.steps.count += count
        else:
            running.span.steps.add(seconds, count)
        running.inside += running.again()  # what looking took

    def document(self) -> list[dict[str, Any]]:
        return [span.document() for span in self._by_name.values()]

    def _named(self, analysis: str, label: str, kind: str) -> Span:
        name = (analysis, label, kind)
        if name not in self._by_name and len(self._by_name) >= MOST_SPANS:
            name = (analysis, OTHERS, kind)
        return self._by_name.setdefault(name, Span(*name))
