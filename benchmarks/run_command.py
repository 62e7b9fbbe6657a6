"""`probekit run` on the embedded model, to a finished report: fresh processes, what each phase takes, and a first run.

Seconds are those of a clock; processor time is what compares on a machine that others use too. Threads are those of
the environment (OMP_NUM_THREADS), else as many as torch takes by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import by_round, order, percentile
from benchmarks.outcome import Figure, Outcome, Series, Settings

GOAL_SECONDS = 12.0
GOAL_OUTSIDE = 2.0
GOAL_PROFILE = 1.05
# What counts to importing torch and transformers: with all that they import in turn.
IMPORTS = ("torch", "transformers")
SHORT = ("-o", "steps=20")
PLAIN, PROFILED, FIRST = "a run", "with --profile", "the first on a machine"


@dataclass(frozen=True)
class Finished:
    """One run in a process of its own: seconds by a clock, of a processor, and its profile, where it took one."""

    seconds: float
    processor: float
    profile: Mapping[str, Any] | None

    def phase(self, name: str, kind: str = "seconds") -> float:
        """Seconds of one phase."""
        phases = {} if self.profile is None else {phase["name"]: phase[kind] for phase in self.profile["phases"]}
        return float(phases.get(name, 0.0))

    @property
    def imports(self) -> float:
        """Seconds of importing torch and transformers."""
        asked = {} if self.profile is None else self.profile["imports"]["asked"]
        return float(sum(asked.get(name, 0.0) for name in IMPORTS))

    @property
    def steps(self) -> float:
        """Seconds of the loops of its analyses."""
        spans = () if self.profile is None else self.profile["spans"]
        return float(sum(span["own_seconds"] for span in spans if span["kind"] == "loop"))

    @property
    def outside(self) -> float:
        """Seconds that are neither importing torch and transformers, nor the model, the steps or the profile."""
        whole = 0.0 if self.profile is None else float(self.profile["seconds"])
        return whole - self.imports - self.phase("loading the model") - self.steps - self.phase("the profile itself")


def finished(options: Sequence[str], cache: Path, folder: Path) -> Finished:
    """Carry out the command in a process of its own, with this cache. Raises RuntimeError if it fails."""
    environment = {**os.environ, "PROBEKIT_CACHE": str(cache)}
    output = Path(tempfile.mkdtemp(dir=folder)) / "run"
    argv = [sys.executable, "-m", "probekit", "run", *options, "--output", str(output)]
    before, began = os.times(), time.perf_counter()
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, os.times()
    if ended.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    profile = output / "profile.json"
    found = json.loads(profile.read_text(encoding="utf-8"))["parts"][0] if profile.is_file() else None
    taken = after.children_user + after.children_system - before.children_user - before.children_system
    return Finished(seconds, taken, found)


def run(settings: Settings) -> Outcome:
    """By turns: a run, one with a profile, and one whose cache is empty, as on a machine that has seen none."""
    outcome = Outcome("probekit run on the embedded model")
    work = list(SHORT) if settings.quick else []
    sides = {PLAIN: work, PROFILED: [*work, "--profile"], FIRST: [*work, "--profile"]}
    rounds: dict[str, list[Finished]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        finished(sides[PLAIN], folder / "cache", folder)  # fills the cache, and the system's own
        for turn in range(settings.rounds(7)):
            for place in order(len(sides), turn):
                side = list(sides)[place]
                cache = folder / (f"empty {turn}" if side == FIRST else "cache")
                rounds[side].append(finished(sides[side], cache, folder))
    return _told(outcome, rounds)


def _told(outcome: Outcome, rounds: Mapping[str, list[Finished]]) -> Outcome:
    for side, runs in rounds.items():
        goal = GOAL_SECONDS if side == PLAIN else None
        outcome.figures.append(_figure(f"{side}: all of the process", [each.seconds for each in runs], goal))
        outcome.figures.append(_figure(f"{side}: of a processor", [each.processor for each in runs]))
    for side in (PROFILED, FIRST):
        goal = GOAL_OUTSIDE if side == PROFILED else None
        what = f"{side}: outside importing {' and '.join(IMPORTS)}, the model and the steps"
        outcome.figures.append(_figure(what, [each.outside for each in rounds[side]], goal))
    ratio = by_round(*([each.processor for each in rounds[side]] for side in (PROFILED, PLAIN)))
    outcome.figure("--profile / without: processor time", ratio, GOAL_PROFILE)
    own = by_round(
        [each.processor - each.phase("the profile itself", "cpu_seconds") for each in rounds[PROFILED]],
        [each.processor for each in rounds[PLAIN]],
    )
    outcome.figure("--profile / without: processor time, less looking into steps", own, GOAL_PROFILE)
    rows = []
    for side in (PROFILED, FIRST):
        runs = rounds[side]
        outcome.figures.append(_figure(f"{side}: importing {' and '.join(IMPORTS)}", [each.imports for each in runs]))
        outcome.figures.append(_figure(f"{side}: steps", [each.steps for each in runs]))
        profile = runs[0].profile
        for name in [] if profile is None else [phase["name"] for phase in profile["phases"]]:
            medians = [median(each.phase(name, kind) for each in runs) for kind in ("seconds", "cpu_seconds")]
            rows.append((f"{side}: {name}", len(runs), medians))
    outcome.series.append(Series("phase", "rounds", ["median, s", "processor, s"], rows))
    threads = {each.profile["threads"] for each in rounds[PROFILED] if each.profile is not None}
    outcome.notes.append(f"Threads of torch in the runs: {', '.join(map(str, sorted(threads)))}.")
    outcome.notes.append("What the profile itself took counts to the ratios, and to no other figure with a goal.")
    return outcome


def _figure(what: str, seconds: Sequence[float], goal: float | None = None) -> Figure:
    return Figure(what, median(seconds), percentile(seconds, 10), percentile(seconds, 90), "s", goal)
