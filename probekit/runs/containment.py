"""What a plugin may do while it computes: within its time, with random numbers of its own, without a voice on stdout.

What an analysis prints is kept in the run's events, one that takes longer than it was given ends with a sentence, and
settings of the whole process that it changes are given back.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from types import FrameType, TracebackType
from typing import Any

from probekit.errors import AnalysisError, described
from probekit.runs import printed
from probekit.runs.determinism import told
from probekit.runs.profiling import phase
from probekit.runs.state import put_back, read_state


class TimeIsUpError(BaseException):
    """Raised in the middle of a plugin whose time is up; not an Exception, which the plugin might catch."""


class Containment:
    """One analysis of a run. `within` may be entered again and again: time and random numbers go on.

    `unrepeatable` are operators that it used and that have no deterministic algorithm: those that are known from a
    process before, to begin with, and `keep` is called with all of them when another comes up.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        say: Callable[[str], None],
        seconds: float | None = None,
        unrepeatable: Iterable[str] = (),
        keep: Callable[[set[str]], object] = lambda _: None,
    ) -> None:
        self._name = name
        self._random = _Random(seed)
        self._printed = printed.Printed(name, say)
        self._given = seconds
        self._keep = keep
        self.seconds = 0.0
        self.unrepeatable = set(unrepeatable)

    def saw(self, operator: str) -> None:
        """It used an operator that has no deterministic algorithm."""
        if operator not in self.unrepeatable:
            self.unrepeatable.add(operator)
            self._keep(self.unrepeatable)

    @property
    def lines_printed(self) -> int:
        return self._printed.count

    def within(self) -> AbstractContextManager[None]:
        """Raises AnalysisError if the time that was given is up before the block ends."""
        return _Within(self, self._given)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """All of `within` but the time: random numbers, settings of the process and standard output."""
        with phase(self._name), self._random.drawn(), told(self.saw):
            before = read_state()
            try:
                with redirect_stdout(self._printed):
                    yield
            finally:
                put_back(before)
                self._printed.end_line()


@contextmanager
def quietly(name: str) -> Iterator[None]:
    """For a plugin that draws, or computes from what was saved: what it prints goes nowhere, and what it raises to end
    the process is an AnalysisError.
    """
    with redirect_stdout(printed.Printed(name, lambda _: None)):
        try:
            yield
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise AnalysisError(described(error)) from error


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


class _Random:
    """Python's, numpy's and torch's default generators as one analysis finds them: seeded for it, and where it left
    them the next time.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._states: list[Any] = []

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """The analysis's own state while open, and the caller's afterwards."""
        callers = _generators()
        try:
            if self._states:
                _restore(self._states)
            else:
                _seed(self._seed)
            yield
        finally:
            self._states = _generators()
            _restore(callers)


def _seed(seed: int) -> None:
    import numpy
    import torch

    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def _generators() -> list[Any]:
    """The states of all default generators."""
    import numpy
    import torch

    devices = [torch.cuda.get_rng_state(device) for device in range(torch.cuda.device_count())]
    return [random.getstate(), numpy.random.get_state(), torch.get_rng_state(), *devices]


def _restore(states: list[Any]) -> None:
    import numpy
    import torch

    random.setstate(states[0])
    numpy.random.set_state(states[1])
    torch.set_rng_state(states[2])
    for device, state in enumerate(states[3:]):
        torch.cuda.set_rng_state(state, device)


def limits_time() -> bool:
    """Whether time can be limited here: by a signal, which only the main thread of a Unix process gets."""
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


class _Alarm:
    """TimeIsUpError after so many seconds, and again every second, in case that something swallowed it.

    It is raised in nothing of this module, which could then not put back what it must, and not while something is
    printed: there it is put off.
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
            if frame.f_globals is globals() or frame.f_globals is vars(printed):
                signal.setitimer(signal.ITIMER_REAL, 1e-3, 1.0)
                return
            frame = frame.f_back
        raise TimeIsUpError
