"""How the tests of this folder ask: a call on hostile input returns, or raises one sentence that a user can mend.

Nothing else may happen: no other exception, no hang, no memory that the input does not warrant, and, where a folder is
named, nothing opened for writing outside it, nothing opened at all beside it, no process, no connection, no pickle.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, strategies

from probekit.errors import ProbekitError

MOST_SECONDS = 20.0  # of one input; a machine that others use as well is slow, and a hang has no end
MOST_MEGABYTES = 700  # more than before the first input
LONGEST_SENTENCE = 2000
SEED_VARIABLE = "PROBEKIT_FUZZ_SEED"


@dataclass(frozen=True)
class Target:
    """One thing that takes input of others: `check` is called with what `inputs` draws. `few` and `many` are how many
    inputs the quick and the slow tests try.
    """

    name: str
    inputs: strategies.SearchStrategy[Any]
    check: Callable[[Any], object]
    few: int = 200
    many: int = 4000

    def __repr__(self) -> str:
        return self.name


class Hung(BaseException):
    """Not an Exception, so that no handler takes it for an answer."""


def answer(call: Callable[[], Any]) -> Any:
    """What a call returns; None if it refuses, as it should, with one sentence."""
    try:
        return call()
    except ProbekitError as error:
        check_sentence(str(error))
        if error.exit_code not in (1, 2, 3, 4):
            raise
        return None


def check_sentence(text: str) -> None:
    """One line of visible characters, which a person reads."""
    assert text.strip()
    assert text.isprintable(), f"not one line of visible characters: {text!r}"
    assert len(text) <= LONGEST_SENTENCE, f"{len(text)} characters: {text[:200]}…"


def few(target: Target) -> None:
    """The same few inputs each time."""
    _carry_out(target, target.few, None)


def many(target: Target) -> None:
    """Other inputs each time; a failure names the seed that repeats it."""
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**32))
    try:
        count = _carry_out(target, target.many, seed)
    except BaseException as error:
        error.add_note(f"The seed was {seed}: {SEED_VARIABLE}={seed} repeats it.")
        raise
    print(f"{target.name}: {count} inputs, seed {seed}")
    assert count >= target.many


def _carry_out(target: Target, inputs: int, seed: int | None) -> int:
    count = 0
    forget_peak()
    before = megabytes()

    def test(given: Any) -> None:
        nonlocal count
        count += 1
        with limited_in_time():
            target.check(given)
        assert megabytes() - before < MOST_MEGABYTES, "more memory than the input warrants"

    # What is found is shrunk where inputs are few; where they are many, a report of the first is soon enough.
    phases = (Phase.generate, Phase.shrink)
    settings = hypothesis.settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=seed is None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    drawn = settings(hypothesis.given(target.inputs)(test))
    if seed is not None:
        drawn = hypothesis.seed(seed)(drawn)
    drawn()
    return count


def forget_peak() -> None:
    """What tests before took at most must not hide what an input takes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def megabytes() -> float:
    """The most memory that this process had since its peak was forgotten."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # of another system, whose peak is never forgotten
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextmanager
def limited_in_time(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Raises Hung in what takes longer. Only the main thread has an alarm; elsewhere pytest's own limit is all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    rung: list[Hung] = []

    def ring(_signal: int, _frame: FrameType | None) -> None:
        rung.append(Hung(f"no answer within {seconds:g} s"))
        raise rung[0]

    before = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)  # pytest-timeout has one as well
        signal.signal(signal.SIGALRM, before)
    if rung:  # somebody took it for an answer
        raise rung[0]


# --- what a call may touch -------------------------------------------------------------------------------------------

WRITES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.symlink", "os.link", "os.truncate", "os.chmod")
NEVER = ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class")
_guarded: list[tuple[str, str]] = []  # the folder that a call may use, and the one around it that it may not look into
_seen: list[str] = []
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _guarded:
        return
    if event in NEVER:
        _seen.append(f"{event} {arguments!r}"[:300])
    elif event == "open" or event in WRITES:
        own, around = _guarded[-1]
        writes = event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        for path in arguments[: 2 if event in ("os.rename", "os.symlink", "os.link") else 1]:
            if not isinstance(path, str | bytes | os.PathLike):
                continue
            given = os.fsdecode(path)
            if "\0" in given or (event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] != -1):
                continue  # no file can be called that; below a folder that was opened, and so was looked at before
            place = os.path.realpath(Path(given).parent if event == "os.symlink" else given)
            inside = place == own or place.startswith(own + os.sep)
            near = place.startswith(around + os.sep)
            if not inside and (writes or near) and place != os.devnull:
                _seen.append(f"{event} {given!r} which is {place!r}")


@contextmanager
def only_in(folder: Path) -> Iterator[None]:
    """While open, whatever is written is written below the folder, and nothing else in the folder around it is read.

    An audit hook sees each file that Python opens; it cannot be taken away again, so it is idle where nothing is
    guarded.
    """
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    own = os.path.realpath(folder)
    _guarded.append((own, str(Path(own).parent)))
    _seen.clear()
    try:
        yield
    finally:
        _guarded.pop()
    assert not _seen, f"it left its folder: {_seen}"
