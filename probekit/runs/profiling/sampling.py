"""Memory over time, as a thread sees it that looks again and again."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_BETWEEN = 0.02
# Of a longer run, so many stretches of equal length, with the most that was there in each.
MOST_POINTS = 400

# It reads /proc, which other systems do not have.
TELLS = sys.platform.startswith("linux")


class Memory:
    """Resident and anonymous memory of this process. Anonymous is what no file backs, as mapped weights are backed.

    `see(resident, anonymous)` is told what each look found, in bytes; `points` are `(second, resident, anonymous)`.
    """

    def __init__(self, see: Callable[[int, int], None]) -> None:
        self._see = see
        self._began = time.perf_counter()
        self._width = SECONDS_BETWEEN
        self._page = os.sysconf("SC_PAGE_SIZE") if TELLS else 0
        self.points: list[tuple[float, int, int]] = []
        self.cpu_seconds = 0.0
        """What the thread itself took of a processor."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look while open; where the system does not tell, do nothing."""
        if not TELLS:
            yield
            return
        over = threading.Event()
        file = os.open("/proc/self/statm", os.O_RDONLY)

        def watch() -> None:
            while not over.wait(SECONDS_BETWEEN):
                self._look(file)
                self.cpu_seconds = time.thread_time()

        watcher = threading.Thread(target=watch, name="probekit profile", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            os.close(file)

    def _look(self, file: int) -> None:
        _, resident, shared, *_ = (int(part) * self._page for part in os.pread(file, 200, 0).split())
        self._see(resident, resident - shared)
        self._keep(time.perf_counter() - self._began, resident, resident - shared)

    def _keep(self, second: float, resident: int, anonymous: int) -> None:
        if self.points and second < self.points[-1][0] + self._width:
            start, most, most_anonymous = self.points[-1]
            self.points[-1] = (start, max(most, resident), max(most_anonymous, anonymous))
            return
        self.points.append((second, resident, anonymous))
        if len(self.points) > MOST_POINTS:
            self._width *= 2
            pairs = zip(self.points[::2], [*self.points[1::2], self.points[-1]], strict=False)
            self.points = [(one[0], max(one[1], two[1]), max(one[2], two[2])) for one, two in pairs]


def process_start() -> tuple[float, float] | None:
    """For how long this process has been there, and what it took of a processor; None where nobody tells."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])
        alive = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return (max(0.0, alive), time.process_time())
