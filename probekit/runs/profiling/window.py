"""A look into some steps of a loop: which operators took them, in which modules, forward or backward.

By torch's own profiler, which records operators and, in a second stretch, the Python calls around them: so modules are
known without hooks. It is on for a few steps only, so that neither memory nor time of the run depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from probekit.runs.profiling.phases import ITSELF, Phases
from probekit.runs.profiling.spans import Running

if TYPE_CHECKING:
    from torch import nn

# So many steps come first, of a short loop a quarter, and so many seconds: what a loop does once is over by then, and
# what takes no time is not worth a look.
WARM_UP = 10
LEAST_SECONDS = 0.2
# A stretch of one step counts its operators; the next, with Python's calls as well, has as many steps as come to these.
MOST_OPERATORS = 20_000
MOST_STEPS = 8
# Longer steps are not looked into: nobody knows how much there would be to keep.
LONGEST_STEP = 30.0
# Loops that are looked into in one run.
MOST_LOOKS = 8


class Windows:
    """One look at a time, and one for each loop of an analysis; into loops that have no others inside them.

    `model()` is the model whose modules are to be named, or None. What looking takes beside the steps themselves, to
    begin, to end and to read what was found, is a phase of its own.
    """

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self.model: Callable[[], nn.Module | None] = lambda: None
        self._looked: set[tuple[str, str]] = set()
        self._look: _Look | None = None
        self.looks: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def stepped(self, running: Running, seconds: float) -> bool:
        """A step is over that took so long: whether it was looked into. The next one may be."""
        ours = self._look is not None and self._look.running is running
        if ours or (self._look is None and self._wants(running, seconds)):
            with self._phases.within(ITSELF), self._contained(running):
                if self._look is None:
                    self._looked.add((running.span.analysis, running.span.label))
                    self._look = _Look(running)
                elif self._look.step():
                    self._finish()
        return ours

    def ended(self) -> None:
        """A loop ends, in whatever way, or another begins inside it."""
        if self._look is not None:
            with self._phases.within(ITSELF), self._contained(self._look.running):
                self._finish()

    def _wants(self, running: Running, seconds: float) -> bool:
        span = running.span
        warm_up = min(WARM_UP, (running.total or 4 * WARM_UP) // 4)
        left = running.total is None or running.taken < running.total
        return (
            not running.has_inner
            and running.calls >= max(1, warm_up)
            and left
            and running.seconds >= LEAST_SECONDS
            and seconds <= LONGEST_STEP
            and len(self._looked) < MOST_LOOKS
            and (span.analysis, span.label) not in self._looked
        )

    def _finish(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            self.looks.append(look.found(self.model()))

    @contextmanager
    def _contained(self, running: Running) -> Iterator[None]:
        """An error of the profiler's, of which torch does not promise much, ends the look and not the run."""
        try:
            yield
        except Exception as error:
            look, self._look = self._look, None
            if look is not None:
                with suppress(Exception):
                    look.give_up()
            name = f"{running.span.analysis}, {running.span.label}"
            self.notes.append(f"A step of {name} could not be looked into by torch's profiler: {error!r}.")


class _Look:
    """Two stretches of steps under torch's profiler."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self._stretches: list[tuple[Any, int]] = []
        self._steps = 1
        self._taken = 0
        self._recording = _recording(calls=False)

    def step(self) -> bool:
        """A step is over: whether the look is."""
        self._taken += 1
        if self._taken < self._steps:
            return False
        self._keep()
        if len(self._stretches) == 2:
            return True
        operators = sum(event.device_type().name == "CPU" for event in self._stretches[0][0].events())
        self._steps, self._taken = min(MOST_STEPS, MOST_OPERATORS // max(1, operators)), 0
        if self._steps:
            self._recording = _recording(calls=True)
        return not self._steps

    def give_up(self) -> None:
        """End what is open."""
        self._keep(whole=False)

    def found(self, model: nn.Module | None) -> dict[str, Any]:
        """What the last whole stretch recorded. Raises ValueError if there is none."""
        from probekit.runs.profiling.operators import read

        self._keep(whole=False)
        if not self._stretches:
            raise ValueError("the loop ended in the step that was looked into")
        results, steps = self._stretches[-1]
        if not results.events():
            raise ValueError("another profiler was begun in the step")
        span = self.running.span
        return {"analysis": span.analysis, "label": span.label, "steps": steps, **read(results, steps, model)}

    def _keep(self, whole: bool = True) -> None:
        """End the stretch that is open, if there is one; of one that is not whole, nothing is kept."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        recording.stop()
        if whole:
            self._stretches.append((recording.profiler.kineto_results, self._steps))


def _recording(calls: bool) -> Any:
    """torch's profiler, begun."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else some builds write two lines to standard error each time
    import torch
    from torch.profiler import ProfilerActivity, profile

    if torch._C._autograd._profiler_enabled():  # it would be ended without a word
        raise RuntimeError("the analysis has a profiler of its own on")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    recording = profile(activities=activities, with_stack=calls, acc_events=False)
    recording.start()
    return recording
