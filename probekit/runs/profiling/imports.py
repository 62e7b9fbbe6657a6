"""What importing packages takes, by the package that was asked for and by the one that took it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from probekit.runs.profiling.phases import IMPORTING, Phases

# Whose modules do not count as the one that asked: what they ask for does.
OURS = ("probekit", "probekit_plugins")


class Imports:
    """A finder that finds nothing by itself: it asks the others, and times what they find while it is executed.

    Only in the thread that it was made in. Time is that of the phase `importing packages`, but for what probekit's own
    modules take.
    """

    def __init__(self, phases: Phases) -> None:
        self._phases = phases
        self._thread = threading.get_ident()
        self._open: list[str] = []
        self._since = 0.0
        self._finding = False
        self.own: dict[str, float] = {}
        """Seconds by package: of its own modules alone."""
        self.asked: dict[str, float] = {}
        """Seconds by package that probekit or a plugin asked for, with all that it imports in turn."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Time imports while open."""
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            with suppress(ValueError):
                sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders find, with a loader that is timed once."""
        if self._finding or threading.get_ident() != self._thread:
            return None
        package = name.partition(".")[0]
        self._finding = True
        depths = self._enter(package)
        try:
            spec = self._found(name, path, target)
        finally:
            self._leave(*depths)
            self._finding = False
        if spec is not None and spec.loader is not None:
            for step in ("create_module", "exec_module"):
                self._time(spec.loader, step, package)
        return spec

    def _found(self, name: str, path: Any, target: ModuleType | None) -> ModuleSpec | None:
        for finder in [*sys.meta_path]:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                return spec
        return None

    def _time(self, loader: Any, step: str, package: str) -> None:
        """Time one call of a loader's method, and leave the loader as it was."""
        method: Callable[..., Any] | None = getattr(loader, step, None)
        if method is None or isinstance(loader, type):
            return

        def timed(given: Any) -> Any:
            with suppress(AttributeError):
                delattr(loader, step)
            if threading.get_ident() != self._thread:
                return method(given)
            depths = self._enter(package)
            try:
                return method(given)
            finally:
                self._leave(*depths)

        with suppress(AttributeError, TypeError):  # of a loader that takes no attributes
            setattr(loader, step, timed)

    def _enter(self, package: str) -> tuple[int, int]:
        self._charge()
        self._open.append(package)
        name = IMPORTING if self._root() else self._phases.now.name
        return len(self._open) - 1, self._phases.enter(name)

    def _leave(self, depth: int, depth_of_phases: int) -> None:
        self._charge()
        del self._open[depth:]
        self._phases.leave(depth_of_phases)

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            package, seconds = self._open[-1], now - self._since
            self.own[package] = self.own.get(package, 0.0) + seconds
            if root := self._root():
                self.asked[root] = self.asked.get(root, 0.0) + seconds
        self._since = now

    def _root(self) -> str | None:
        """The first package of others on the way to what is being imported."""
        return next((package for package in self._open if package not in OURS), None)
