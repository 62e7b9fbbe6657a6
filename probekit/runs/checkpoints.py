"""The state of an unfinished analysis, on disk: one safetensors file for each loop and each finished stage.

Files are written by time, whole or not at all, below `analyses/<name>/state/`, and go when the analysis is done.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from probekit.errors import UsageError
from probekit.runs.directory import RunDirectory

if TYPE_CHECKING:
    import torch

SECONDS_BETWEEN_SAVES = 30.0


# Those of the runs that are under way in the main thread, the innermost last.
_open: list[Callable[[], None]] = []


def ask_to_stop() -> bool:
    """Ask the run that is under way to stop, as Ctrl-C does; False if there is none. Raises KeyboardInterrupt the
    second time.
    """
    if _open:
        _open[-1]()
    return bool(_open)


class StopFlag:
    """Set by the first interrupt; the run stops at the end of the step that it is in."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def on_interrupt(self, say: Callable[[str], None]) -> Iterator[None]:
        """While open, the first Ctrl-C sets the flag and the second raises KeyboardInterrupt.

        Only where Python's own handler is in place, in the main thread: somebody else's handler is left alone.
        """

        def ask() -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            say("Stopping at the end of this step; Ctrl-C once more stops at once.")

        def handle(_signal: int, _frame: FrameType | None) -> None:
            ask()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        _open.append(ask)
        try:
            if ours:
                signal.signal(signal.SIGINT, handle)
            yield
        finally:
            _open.pop()
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)


class FileStore:
    """The `Store` of one analysis of a run."""

    def __init__(
        self, directory: RunDirectory, analysis: str, stop: StopFlag, seconds: float = SECONDS_BETWEEN_SAVES
    ) -> None:
        self._directory = directory
        self._folder = f"analyses/{analysis}/state"
        self._stop = stop
        self._seconds = seconds
        self._saved = time.monotonic()

    def read(self, kind: str, label: str) -> dict[str, torch.Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._directory.path / self._name(kind, label)
        try:
            return load_file(path) if path.is_file() else None
        except (OSError, SafetensorError) as error:
            raise UsageError(f"The saved state '{path}' is damaged ({error}); remove it to begin there anew.") from None

    def write(self, kind: str, label: str, state: dict[str, Any]) -> None:
        from safetensors.torch import save

        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        self._directory.write(self._name(kind, label), save(copies, {"kind": kind, "label": label}))
        self._saved = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def stop_asked(self) -> bool:
        return self._stop.asked

    def clear(self) -> None:
        """Remove the state of an analysis that is done."""
        shutil.rmtree(self._directory.path / self._folder, ignore_errors=True)

    def _name(self, kind: str, label: str) -> str:
        digest = hashlib.sha256(f"{kind}/{label}".encode()).hexdigest()[:16]
        return f"{self._folder}/{kind}-{digest}.safetensors"
