"""The loops and stages of analyses, timed: a context that does what any does, and looks at the clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from probekit.analysis.context import Context, Loop, Progress, State
from probekit.runs.profiling.current import current
from probekit.runs.profiling.spans import Running, Spans

if TYPE_CHECKING:
    pass


def context_class() -> type[Context]:
    """The class of the contexts that analyses get: while a profile is taken, one that times their loops."""
    return Context if current() is None else TimedContext


@contextmanager
def timed_progress(progress: Progress, analysis: str, label: str) -> Iterator[None]:
    """While open, and while a profile is taken, the steps of a loop are timed under the name of an analysis."""
    profile = current()
    if profile is None:
        yield
        return
    with profile.spans.within(analysis, label, "loop", progress._total, progress._done) as running:
        _time(progress, profile.spans, running)
        try:
            yield
        finally:
            vars(progress).pop("_show", None)  # it holds the loop, and the loop holds it


class TimedContext(Context):
    """Times loops and stages, and does what any context does; results do not depend on it."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        with super().progress(label, total) as progress, timed_progress(progress, self._analysis, label):
            yield progress

    @contextmanager
    def loop(self, label: str, total: int, key: str | None = None) -> Iterator[Loop]:
        with super().loop(label, total, key) as loop, timed_progress(loop, self._analysis, label):
            yield loop

    def stage(self, key: str, compute: Callable[[], State]) -> State:
        profile = current()
        if profile is None:
            return super().stage(key, compute)
        # A stage for each batch, each prompt, each part of either: what they have in common is the label.
        with profile.spans.within(self._analysis, re.sub(r"\d+", "N", key), "stage") as running:
            found = super().stage(key, compute)
            running.span.steps.count += 1
            return found


def _time(progress: Progress, spans: Spans, running: Running) -> None:
    """Tell the spans of each step that the loop takes."""
    show = progress._show

    def step(count: int, values: dict[str, Any]) -> None:
        spans.step(running, count)
        show(count, values)

    vars(progress)["_show"] = step
