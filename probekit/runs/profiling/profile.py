"""A profile: the clocks and the watches of one process, together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from probekit.runs.profiling.imports import Imports
from probekit.runs.profiling.phases import ITSELF, START_UP, Phase, Phases
from probekit.runs.profiling.sampling import SECONDS_BETWEEN, Memory, process_start
from probekit.runs.profiling.spans import Spans
from probekit.runs.profiling.window import Windows

if TYPE_CHECKING:
    from probekit.subject import Subject


class Profile:
    """Where time and memory of a process go, from now on, or from when the process began if that is asked for."""

    def __init__(self, whole_process: bool = False) -> None:
        self.phases = Phases(self._note_cuda)
        start = process_start() if whole_process else None
        if start is not None:
            self.phases.before(START_UP, *start)
        self._imports = Imports(self.phases)
        self._memory = Memory(lambda resident, anonymous: self.phases.now.see(resident, anonymous))
        self._windows = Windows(self.phases)
        self.spans = Spans(self._windows.stepped, self._windows.ended)
        self._weights: dict[str, Any] = {}
        self._began = datetime.now().astimezone().isoformat(timespec="seconds")
        self.earlier: list[Any] | None = None
        """The parts of processes that worked on the run before; not known until something is written down."""

    @contextmanager
    def taken(self) -> Iterator[Profile]:
        """Take it while open."""
        with ExitStack() as watches:
            watches.enter_context(self._memory.watched())
            watches.enter_context(self._imports.watched())
            yield self

    def names_modules_of(self, model: Callable[[], Any]) -> None:
        """Operators are told by the modules of this model, which is there when they are read."""
        self._windows.model = model

    def weigh(self, subject: Subject, site: str, input_ids: Any) -> None:
        """Note what the weights take, and what the gradient of one row keeps up to a site: two short forward passes."""
        from probekit.description.memory import kept_for_gradient, weights

        with self.phases.within(ITSELF):
            held = weights(subject)
            self._weights = {"in_memory": held.in_memory, "mapped": held.mapped, "offloaded": held.offloaded}
            try:
                kept = kept_for_gradient(subject, site, input_ids)(input_ids.shape[1])
            except Exception:  # a site without a gradient, or no memory for it: nothing is said of it
                return
            self._weights |= {"site": site, "tokens": input_ids.shape[1], "kept_for_a_row": kept}

    def document(self) -> dict[str, Any]:
        """What is known up to now, as JSON types: seconds and bytes."""
        torch = sys.modules.get("torch")
        return {
            "began": self._began,
            "seconds": self.phases.seconds,
            "phases": self.phases.document(),
            "imports": {"own": _longest(self._imports.own), "asked": _longest(self._imports.asked)},
            "spans": self.spans.document(),
            "looks": self._windows.looks,
            "memory": [list(point) for point in self._memory.points],
            "weights": self._weights,
            "sampling": {"cpu_seconds": self._memory.cpu_seconds, "every": SECONDS_BETWEEN},
            "threads": 0 if torch is None else torch.get_num_threads(),
            "cores": os.cpu_count() or 1,
            "notes": list(self._windows.notes),
        }

    @staticmethod
    def _note_cuda(phase: Phase) -> None:
        """The most that CUDA had allocated in a stretch of a phase; the count begins anew for the next."""
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and hasattr(cuda, "reset_peak_memory_stats") and cuda.is_initialized():
            devices = range(cuda.device_count())
            phase.cuda = max(phase.cuda, sum(cuda.max_memory_allocated(device) for device in devices))
            for device in devices:
                cuda.reset_peak_memory_stats(device)


def _longest(seconds: dict[str, float], count: int = 15) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda entry: -entry[1])[:count])
