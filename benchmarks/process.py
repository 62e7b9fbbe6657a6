"""What Linux tells of the memory of a process, and processes of their own to measure it in."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Found = TypeVar("Found")

# It reads /proc, which other systems do not have.
TELLS = sys.platform.startswith("linux")
GLANCE_SECONDS = 0.02


def live_tensors() -> int:
    """How many tensors there are in this process that Python knows of."""
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def resident_mib() -> float:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """The most memory that this process has held since it was last asked to forget."""
    return _kib("/proc/self/status", "VmHWM") / 2**10


def forget_peak() -> None:
    """Start the peak anew, from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def anonymous_mib() -> float:
    """The memory that this process holds now and no file backs: the system cannot drop it and read it again."""
    return _kib("/proc/self/smaps_rollup", "Anonymous") / 2**10


def _kib(file: str, field: str) -> int:
    [line] = [line for line in Path(file).read_text(encoding="ascii").splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1])


class AnonymousPeak:
    """The most anonymous memory of a process that was seen in glances at it."""

    def __init__(self, process: int | str) -> None:
        self.mib = 0.0
        self._status = f"/proc/{process}/status"

    def glance(self) -> None:
        """Look once. The kernel's running count is off by less than a MiB and costs nothing, unlike smaps."""
        self.mib = max(self.mib, _kib(self._status, "RssAnon") / 2**10)


@contextmanager
def watched(process: int | str = "self") -> Iterator[AnonymousPeak]:
    """Glance at the anonymous memory of a process, again and again, while open."""
    peak = AnonymousPeak(process)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(GLANCE_SECONDS):
            try:
                peak.glance()
            except (OSError, ValueError):  # it has ended; a zombie has no such line
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def afresh(work: Callable[Given, Found], *arguments: Given.args, **options: Given.kwargs) -> Found:
    """What the work returns in a process of its own, with this one's number of threads and nothing else of it."""
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(work, *arguments, **options).result()
