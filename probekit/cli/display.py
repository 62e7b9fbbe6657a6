"""Progress on standard error: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

import click

from probekit.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from probekit.analysis import Listener

SECONDS_BETWEEN_LINES = 5.0


class PlainLines:
    """A line at the end of each loop, and every few seconds in between."""

    def __init__(self) -> None:
        self._label = ""
        self._started = self._shown = 0.0

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        if label != self._label:
            self._label, self._started, self._shown = label, now, now
        if done < total and now - self._shown < SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        figures = "".join(f", {name} {value:.4g}" for name, value in values.items())
        spent = now - self._started
        left = f", {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
        click.echo(f"{label}: {done}/{total}{figures}{left}", err=True)

    def message(self, text: str) -> None:
        click.echo(one_line(text), err=True)


class LiveBar:
    """One bar for each loop, with step, figures and the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if label not in self._tasks or (self._finished(label) and done < total):
            self._tasks[label] = self._progress.add_task(label, total=total, figures=figures)
        self._progress.update(self._tasks[label], completed=done, figures=figures)

    def _finished(self, label: str) -> bool:
        return any(task.id == self._tasks[label] and task.finished for task in self._progress.tasks)

    def message(self, text: str) -> None:
        self._progress.console.print(one_line(text), markup=False, emoji=False, highlight=False)


@contextmanager
def keeping_output_clean(as_json: bool) -> Iterator[None]:
    """With JSON asked for, what is printed while the block is open goes to standard error: by Python, and by whatever
    else writes to the process's standard output.
    """
    if not as_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def display() -> Iterator[Listener]:
    """The listener that suits standard error, while the block is open."""
    if not sys.stderr.isatty():
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Label(TextColumn):
        """Labels are data: no markup is read from them."""

        def render(self, task):  # type: ignore[no-untyped-def]
            return Text(str(task.description))

    columns = (
        Label(""),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield LiveBar(progress)
