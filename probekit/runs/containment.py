"""What a plugin may do while it computes: within its time, with random numbers of its own, without a voice on stdout.

What an analysis prints is kept in the run's events, one that takes longer than it was given ends with a sentence, and
settings of the whole process that it changes are given back.
"""

from __future__ import annotations

import codecs
import io
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from probekit.errors import AnalysisError
from probekit.runs.profiling import phase
from probekit.runs.state import put_back, read_state

if TYPE_CHECKING:
    import torch

# So many lines of what an analysis prints are kept.
LINES_KEPT = 20
# And so many characters of each.
LINE_LENGTH = 2000


class TimeIsUpError(BaseException):
    """Raised in the middle of a plugin whose time is up; not an Exception, which the plugin might catch."""


class Containment:
    """One analysis of a run. `within` may be entered again and again: time and random numbers go on."""

    def __init__(self, name: str, seed: int, say: Callable[[str], None], seconds: float | None = None) -> None:
        self._name = name
        self._random = _Random(seed)
        self._printed = _Printed(name, say)
        self._given = seconds
        self.seconds = 0.0

    @property
    def lines_printed(self) -> int:
        return self._printed.count

    def within(self) -> AbstractContextManager[None]:
        """Raises AnalysisError if the time that was given is up before the block ends."""
        return _Within(self, self._given)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """All of `within` but the time: random numbers, settings of the process and standard output."""
        with phase(self._name), self._random.drawn():
            before = read_state()
            try:
                with redirect_stdout(self._printed):
                    yield
            finally:
                put_back(before)
                self._printed.end_line()


class _Within:
    """One block of an analysis. A class, and no generator: an alarm would end a generator's manager half-way."""

    def __init__(self, containment: Containment, given: float | None) -> None:
        self._containment = containment
        self._apart = containment.apart()
        self._given = given if limits_time() else None
        self._alarm = None if self._given is None else _Alarm(self._given - containment.seconds)

    def __enter__(self) -> None:
        self._apart.__enter__()
        self._began = time.perf_counter()
        if self._alarm is not None:
            self._alarm.on()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.off()
        self._containment.seconds += time.perf_counter() - self._began
        self._apart.__exit__(kind, error, trace)
        if self._given is None:
            return
        late = error is None and self._containment.seconds > self._given  # it may have swallowed the alarm
        if late or isinstance(error, TimeIsUpError):
            raise AnalysisError(
                f"It took longer than the {self._given:g} s that it was given; give it more (--time-limit), or less to "
                "do."
            ) from None


class _Printed(io.TextIOBase):
    """Standard output for a plugin: its first lines are said, the others counted.

    Of a line that is written over, as progress is, the last version counts. What goes past Python goes to standard
    error.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._begun = ""
        self.count = 0
        self.buffer = _Bytes(self)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def reconfigure(self, **_: object) -> None:
        """There is nothing to configure."""

    def end_line(self) -> None:
        """What stands without a newline is a line as well."""
        self.buffer.end()
        if self._begun:
            self.write("\n")

    def write(self, text: str) -> int:
        first, *others = text.split("\n")
        lines = [self._begun + first, *others]
        self._begun = _last_version(lines.pop())
        for line in lines:
            self.count += 1
            if self.count <= LINES_KEPT:
                self._say(f"{self._name} printed: {_last_version(line).rstrip(chr(13))}")
            elif self.count == LINES_KEPT + 1:
                self._say(f"{self._name} goes on printing; its further lines are not kept.")
        return len(text)


def _last_version(line: str) -> str:
    """What a line shows, cut to its length; a return at its end is kept, since it acts on what follows only."""
    shown = line.rstrip("\r")
    return shown.rpartition("\r")[2][:LINE_LENGTH] + ("\r" if len(shown) < len(line) else "")


class _Bytes(io.BufferedIOBase):
    """What is written in bytes, as text."""

    def __init__(self, text: _Printed) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder(text.encoding)(text.errors)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any) -> int:
        given = bytes(data)
        self._text.write(self._decoder.decode(given))
        return len(given)

    def end(self) -> None:
        """A character that was begun only is written as one that cannot be read."""
        self._text.write(self._decoder.decode(b"", final=True))


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


def limits_time() -> bool:
    """Whether time can be limited here: by a signal, which only the main thread of a Unix process gets."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


class _Alarm:
    """TimeIsUpError after so many seconds, and again every second, in case that something swallowed it.

    It is raised in nothing of this module, which could then not put back what it must: there it is put off.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = max(seconds, 1e-6)
        self._armed = False

    def on(self) -> None:
        self._began = time.monotonic()
        self._handler: Any = signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        self._others = signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)

    def off(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._handler is not None:
            signal.signal(signal.SIGALRM, self._handler)
        left, interval = self._others
        if left:  # somebody else's alarm, which goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - self._began), 1e-3), interval)

    def _ring(self, _signal: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        while frame is not None:  # also what this module calls, such as a tracer
            if frame.f_globals is globals():
                signal.setitimer(signal.ITIMER_REAL, 1e-3, 1.0)
                return
            frame = frame.f_back
        raise TimeIsUpError
