"""Timing by turns: several sides do the same work, one after the other, round after round.

A ratio is taken within each round, between two calls that are moments apart, so that a machine that slows down for
a second slows both. The order rotates from round to round, and is reversed in every second turn of it, so that no
side always follows the same one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

Role = Literal["floor", "peer", "probekit"]


@dataclass(frozen=True)
class Side:
    """One way of doing the work: `step()` does it once. The floor is hand-written PyTorch, a peer another tool."""

    name: str
    role: Role
    step: Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """The ratio of two sides over all rounds: its median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timings:
    """Seconds by side, one entry a round."""

    seconds: dict[str, list[float]]

    def median(self, side: str) -> float:
        return median(self.seconds[side])

    def ratio(self, side: str, *to: str) -> Ratio:
        """How many times as long a side took as another, or as several one after the other, round by round."""
        others = [sum(together) for together in zip(*(self.seconds[each] for each in to), strict=True)]
        return by_round(self.seconds[side], others)


def by_round(mine: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of two sides' figures, round by round: of times, or of memory."""
    ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
    return Ratio(median(ratios), percentile(ratios, 10), percentile(ratios, 90))


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile, linear between the two values next to it."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def order(count: int, turn: int) -> list[int]:
    """Which side goes when in a round: 0 1 2, 1 2 0, 2 0 1, then each of these reversed, and again."""
    start = turn % count
    rotated = [(start + place) % count for place in range(count)]
    return rotated[::-1] if turn // count % 2 else rotated


def alternate(
    sides: Sequence[Side], rounds: int, warmup: int, clock: Callable[[], float] = time.perf_counter
) -> Timings:
    """Let each side do its work once a round, and time it; the rounds of the warm-up are not kept.

    Raises ValueError if there is no round to keep, or if two sides share a name.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1.")
    if len({side.name for side in sides}) < len(sides):
        raise ValueError(f"Two sides share a name: {', '.join(side.name for side in sides)}.")
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    with _collecting_between() as collect:
        for turn in range(warmup + rounds):
            collect()
            for place in order(len(sides), turn):
                side = sides[place]
                start = clock()
                side.step()
                taken = clock() - start
                if turn >= warmup:
                    seconds[side.name].append(taken)
    return Timings(seconds)


@contextmanager
def _collecting_between() -> Iterator[Callable[[], object]]:
    """No garbage collection while a side is timed; the function collects what has come up since."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is there already stays, and need not be walked over in every round
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
