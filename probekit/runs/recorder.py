"""Who is told what happens in a run: the listener, and the run's events."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

from probekit.analysis import Listener
from probekit.runs.directory import RunDirectory


class Recorder:
    """Passes progress on, and keeps messages in the run's events."""

    def __init__(self, directory: RunDirectory, listener: Listener) -> None:
        self._directory = directory
        self._listener = listener
        self._stdout = sys.stdout  # a listener may print there, also while an analysis must not

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        with redirect_stdout(self._stdout):
            self._listener.progress(label, done, total, values)

    def message(self, text: str) -> None:
        self._directory.append_event({"event": "message", "text": text})
        self.show(text)

    def show(self, text: str) -> None:
        """A message for now, not for the record."""
        with redirect_stdout(self._stdout):
            self._listener.message(text)
