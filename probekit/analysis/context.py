"""What a run gives an analysis while it computes: progress, a seeded generator, a log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

# A value of progress is turned into a number, which waits for the device, at most this often.
SECONDS_BETWEEN_UPDATES = 0.1


class Listener(Protocol):
    """Who shows or records what happens in a run."""

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        """A loop has come so far; `values` are named figures such as the loss."""
        ...

    def message(self, text: str) -> None:
        """A line for the person who waits, and for the record."""
        ...


class Silent:
    """A listener that does nothing."""

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class Progress:
    """Progress of one loop. Call `step()` once a step; its values may be tensors, or functions of nothing, which are
    not read until they are shown.
    """

    def __init__(self, listener: Listener, label: str, total: int) -> None:
        self._listener = listener
        self._label = label
        self._total = total
        self._done = 0
        self._shown = 0.0

    def step(self, count: int = 1, **values: Any) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown >= SECONDS_BETWEEN_UPDATES or self._done >= self._total:
            self._shown = now
            numbers = {name: float(value() if callable(value) else value) for name, value in values.items()}
            self._listener.progress(self._label, self._done, self._total, numbers)


class Context:
    """Given to an analysis as `self.context`. `Context()` is a silent one, for calls outside a run."""

    def __init__(self, seed: int = 0, analysis: str = "", listener: Listener | None = None) -> None:
        self.seed = seed
        self._analysis = analysis
        self._listener: Listener = listener or Silent()

    def generator(self, label: str = "") -> torch.Generator:
        """A CPU generator seeded by the run's seed, the analysis and a label of your choice: draw on the CPU and move.

        The same three give the same numbers on every machine and device, whatever else the run does.
        """
        import torch

        digest = hashlib.sha256(f"{self.seed}/{self._analysis}/{label}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show a loop of `total` steps: `with context.progress("block.3", 500) as progress: …
        progress.step(loss=loss)`.
        """
        yield Progress(self._listener, label, total)

    def log(self, text: str) -> None:
        """A line for the person who waits, kept in the run's events."""
        self._listener.message(text)
