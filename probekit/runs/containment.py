"""What a plugin may do while it computes: within its time, with random numbers of its own, without a voice on stdout.

What an analysis prints is kept in the run's events, one that takes longer than it was given ends with a sentence, and
settings of the whole process that it changes are given back.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from probekit.errors import AnalysisError

if TYPE_CHECKING:
    import torch

# So many lines of what an analysis prints are kept.
LINES_KEPT = 20


class TimeIsUpError(BaseException):
    """Raised in the middle of a plugin whose time is up; not an Exception, which the plugin might catch."""


class Containment:
    """One analysis of a run. `within` may be entered again and again: time and random numbers go on."""

    def __init__(self, name: str, seed: int, say: Callable[[str], None], seconds: float | None = None) -> None:
        self._random = _Random(seed)
        self._printed = _Printed(name, say)
        self._given = seconds
        self.seconds = 0.0

    @property
    def lines_printed(self) -> int:
        return self._printed.count

    @contextmanager
    def within(self) -> Iterator[None]:
        """Raises AnalysisError if the time that was given is up before the block ends."""
        began = time.perf_counter()
        left = None if self._given is None else max(self._given - self.seconds, 1e-3)
        try:
            with self._random.drawn(), _settings_kept(), redirect_stdout(self._printed), _ringing(left):
                yield
        except TimeIsUpError:
            raise AnalysisError(
                f"It took longer than the {self._given:g} s that it was given; give it more (--time-limit), or less to "
                "do."
            ) from None
        finally:
            self.seconds += time.perf_counter() - began
            self._printed.end_line()


class _Printed(io.TextIOBase):
    """Standard output for a plugin: its first lines are said, the others counted."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._begun = ""
        self.count = 0

    def writable(self) -> bool:
        return True

    def end_line(self) -> None:
        """What stands without a newline is a line as well."""
        if self._begun:
            self.write("\n")

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self.count += 1
            if self.count <= LINES_KEPT:
                self._say(f"{self._name} printed: {line}")
            elif self.count == LINES_KEPT + 1:
                self._say(f"{self._name} goes on printing; its further lines are not kept.")
        return len(text)


class _Random:
    """torch's default generators as one analysis finds them: seeded for it, and where it left them the next time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: list[torch.Tensor] | None = None

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """The analysis's own state while open, and the caller's afterwards."""
        import torch

        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=devices):
            if self._states is None:
                torch.manual_seed(self._seed)
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(devices, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@contextmanager
def _settings_kept() -> Iterator[None]:
    """What holds for the whole process, and what others rely on, as it was before: the folder, and torch's defaults."""
    import torch

    folder = Path.cwd()
    gradients, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def limits_time() -> bool:
    """Whether time can be limited here: by a signal, which only the main thread of a Unix process gets."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


@contextmanager
def _ringing(seconds: float | None) -> Iterator[None]:
    """TimeIsUpError after so many seconds, and again every second, in case that something swallowed it."""
    if seconds is None or not limits_time():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeIsUpError

    handler: Any = signal.signal(signal.SIGALRM, ring)
    began = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # somebody else's alarm, which goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)
