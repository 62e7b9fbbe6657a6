"""Memory over 10 000 steps of a descent, and over 100 runs in one process, each in a process of its own.

Steps: one block of GPT-2, 8 restarts. Garbage collection is off while they are taken: what is left over by a step
must go by itself. Runs: a short analysis of the embedded model, each in a new directory; garbage is collected after it.

Memory is read again and again, and a line is fitted: its slope is told with its standard error, which says whether it
is more than noise.
"""

from __future__ import annotations

import gc
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from pathlib import Path

import torch

import probekit
from benchmarks.descent import Descent
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Figure, Outcome, Settings
from benchmarks.process import TELLS, afresh, anonymous_mib, forget_peak, live_tensors, peak_mib, resident_mib

RESTARTS = 8
STEPS = 10_000
RUNS = 100
# Of each so many steps the most memory is taken; the line goes through these.
WINDOW = 100
# What comes before is not part of the line: it is when memory is first asked for.
WARM_UP = 0.1
GOAL_MIB = 1.0
GOAL_MIB_A_RUN = 0.1
OPTIONS = {"steps": 5, "restarts": 2, "record_every": 5}


@dataclass(frozen=True)
class Slope:
    """A line through values at even steps: `value ≈ a + slope · index`, with the standard error of the slope."""

    slope: float
    error: float


def fitted(values: Sequence[float]) -> Slope:
    """The line of least squares. Neighbouring windows are alike, so the error is widened by their correlation.

    With `ρ` of residuals one apart, `n (1 − ρ)/(1 + ρ)` of the `n` values are independent. Raises ValueError for less
    than three values.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"A line with an error goes through at least three values; there are {count}.")
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((place - middle) ** 2 for place in range(count))
    slope = sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    residuals = [value - mean - slope * (place - middle) for place, value in enumerate(values)]
    squares = sum(each**2 for each in residuals)
    if not squares:
        return Slope(slope, 0.0)
    alike = sum(one * two for one, two in pairwise(residuals)) / squares
    alike = min(max(alike, 0.0), 0.95)
    return Slope(slope, sqrt(squares / (count - 2) / spread * (1 + alike) / (1 - alike)))


def held_over_steps(steps: int) -> dict[str, list[float]]:
    """What there is after each window of a descent: live tensors, and resident and anonymous memory in MiB; and the
    process's peak after its warm-up and at its end.
    """
    subject = gpt2(depth=1)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
    layer_map = subject.layer_map("block.0")
    with torch.no_grad():
        target = layer_map(subject.embed(input_ids))
    start = 0.1 * torch.randn(RESTARTS, TOKENS, subject.width, generator=generator)
    descent = Descent(layer_map, start, target)
    window = min(WINDOW, steps // 10)
    found: dict[str, list[float]] = {"tensors": [], "resident": [], "anonymous": [], "peak": []}
    gc.collect()
    gc.disable()
    for taken in range(0, steps, window):
        resident = 0.0
        for _ in range(window):
            descent.step()
            resident = max(resident, resident_mib())
        if taken < WARM_UP * steps:
            forget_peak()
            continue
        found["tensors"].append(live_tensors())
        found["resident"].append(resident)
        found["anonymous"].append(anonymous_mib())
        found["peak"].append(peak_mib())
    return found


def held_over_runs(runs: int, model: str = "demo") -> dict[str, list[float]]:
    """What there is in the process after each of so many runs."""
    found: dict[str, list[float]] = {"tensors": [], "objects": [], "threads": [], "files": [], "anonymous": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            output = Path(folder) / str(number)
            run = probekit.run(model, "gradient-inverter", "The sky is blue.", dict(OPTIONS), output)
            if run.status != "done":
                raise RuntimeError(f"A run was to be done; it is {run.status}: {run.failures}")
            del run
            for name, count in counts().items():
                found[name].append(count)
            found["anonymous"].append(anonymous_mib())
    return found


def counts() -> dict[str, float]:
    """What is there in this process once garbage is collected: tensors, objects of our classes, threads, open files."""
    gc.collect()
    ours = ("probekit", "probekit_plugins")
    return {
        "tensors": live_tensors(),
        "objects": sum(str(type(each).__module__).partition(".")[0] in ours for each in gc.get_objects()),
        "threads": threading.active_count(),
        "files": len([*Path("/proc/self/fd").iterdir()]),
    }


def run(settings: Settings) -> Outcome:
    """Measure in fresh processes, whose peak no other benchmark has set."""
    steps, runs = (100, 6) if settings.quick else (STEPS, RUNS)
    outcome = Outcome(f"Memory over {steps} steps, and over {runs} runs")
    if not TELLS:
        outcome.notes.append("Left out: it reads what only Linux tells.")
        return outcome
    stepped = afresh(held_over_steps, steps)
    outcome.figures.append(
        Figure("steps: live tensors, last window − first", _grown(stepped["tensors"]), unit="", goal=0)
    )
    for what in ("resident", "anonymous"):
        _line(outcome, f"steps: {what} memory, slope × all steps", stepped[what], len(stepped[what]) - 1, GOAL_MIB)
    outcome.figures.append(
        Figure("steps: peak memory, end − warm-up", _grown(stepped["peak"]), unit="MiB", goal=GOAL_MIB)
    )
    ran = afresh(held_over_runs, runs)
    later = {name: values[max(2, runs // 10) :] for name, values in ran.items()}
    for what, shown in {"tensors": "live tensors", "objects": "objects of our classes", "threads": "threads"}.items():
        outcome.figures.append(Figure(f"runs: {shown}, last run − an early one", _grown(later[what]), unit="", goal=0))
    outcome.figures.append(Figure("runs: open files, last run − an early one", _grown(later["files"]), unit="", goal=0))
    _line(outcome, "runs: anonymous memory, slope a run", later["anonymous"], 1, GOAL_MIB_A_RUN)
    outcome.notes.append("The 10 % – 90 % of a slope are two standard errors to either side of it.")
    return outcome


def _line(outcome: Outcome, what: str, values: Sequence[float], steps: int, goal: float) -> None:
    """How much a line through the values grows in so many of them, with two standard errors to either side."""
    line = fitted(values)
    growth, error = steps * line.slope, 2 * steps * line.error
    within = "within noise" if abs(growth) <= error else "more than noise"
    outcome.figures.append(Figure(f"{what} ({within})", growth, growth - error, growth + error, "MiB", goal))


def _grown(values: Sequence[float]) -> float:
    return values[-1] - values[0]
