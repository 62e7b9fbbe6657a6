"""A study on one and on two workers of a local Ray cluster, and with and without a model that its cells share.

The study is of short real runs: the gradient inverter on the embedded model, by block and seed. Each side carries all
of it out into a folder of its own, which holds the same bytes afterwards, or the benchmark fails.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from transformers import GPT2Config

from benchmarks.measure import Ratio, Side, Timings, alternate, by_round
from benchmarks.outcome import Outcome, Settings
from probekit.analysis.context import Silent
from probekit.plugins import Plugins
from probekit.runs.studies import study
from probekit.runs.studies.engines import Local, OnRay
from probekit.runs.studies.engines.cluster import import_ray
from probekit.runs.studies.work import Engine, Work, carry_out_cell
from probekit.runs.subjects import Subjects

# How many times as fast two workers have to be as one, from the call to the report.
GOAL = 1.7
CELLS, CELLS_QUICK = 40, 4
# Of each cell, which so takes about two seconds.
STEPS = 300
ROUNDS = 3


class EachLoads:
    """The local engine as it was: every cell loads its model."""

    def carry_out(self, work: Work) -> None:
        """One cell after another."""
        for cell in work.cells:
            carry_out_cell(work.folder, cell, work.plugins, Silent(), work.seconds_between_saves, Subjects())


@dataclass
class Begin:
    """A listener that knows when the first cell was begun."""

    first: float = field(default=0.0)

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        """Nothing to do."""

    def message(self, text: str) -> None:
        """The first that names a cell counts."""
        if text.startswith("Cell ") and not self.first:
            self.first = time.perf_counter()


@dataclass
class Studies:
    """Calls of one study, each into a new folder; with the seconds before the first cell, and after it."""

    path: Path
    plugins: Plugins
    starting: dict[str, list[float]] = field(default_factory=dict)
    working: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, bytes] = field(default_factory=dict)

    def side(self, name: str, engine: Engine) -> Side:
        """A side that carries the study out by an engine."""
        return Side(name, "probekit", lambda: self._carry_out(name, engine))

    def _carry_out(self, name: str, engine: Engine) -> None:
        with tempfile.TemporaryDirectory() as folder:
            begin, called = Begin(), time.perf_counter()
            outcome = study(self.path, Path(folder) / "out", manager=self.plugins, listener=begin, engine=engine)
            first = begin.first or called
            self.starting.setdefault(name, []).append(first - called)
            self.working.setdefault(name, []).append(time.perf_counter() - first)
            if outcome.failures or outcome.missing:
                raise RuntimeError(f"{name}: {outcome!r}")
            self._compare(name, Path(folder) / "out")

    def _compare(self, name: str, folder: Path) -> None:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "timings.json"
        }
        self.found = self.found or files
        if files != self.found:
            other = sorted({name for name, _ in files.items() ^ self.found.items()})
            raise RuntimeError(f"{name} found something else in {', '.join(other[:3])}.")


def written(folder: Path, model: str | dict[str, str], cells: int, steps: int) -> Path:
    """The study file: half of its cells on the first block, half on the second."""
    run: dict[str, Any] = {
        "model": model,
        "plugins": "gradient-inverter",
        "options": {"sites": "block.$block", "steps": steps, "restarts": 5, "next_token": False},
        "seeds": cells // 2,
        "sweep": {"block": [0, 1]},
    }
    if not isinstance(model, str):
        run["input_ids"] = [[464, 6766, 318, 4171, 13]]
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps({"title": "Benchmark", "runs": {"inverter": run}}), encoding="utf-8")
    return path


def run(settings: Settings) -> Outcome:
    """Both comparisons; the first only where Ray is installed."""
    outcome = Outcome("A study: workers, and a model that cells share")
    plugins = Plugins()
    with tempfile.TemporaryDirectory() as folder:
        shared(outcome, settings, Path(folder), plugins)
        workers(outcome, settings, Path(folder), plugins)
    return outcome


def shared(outcome: Outcome, settings: Settings, folder: Path, plugins: Plugins) -> None:
    """In this process: cells that share their model, against cells that each load it."""
    GPT2Config().save_pretrained(folder / "gpt2")
    large = {"name": str(folder / "gpt2"), "weights": "random"}
    cells = 4 if settings.quick else 8
    for label, model, steps in (("the embedded model", "demo", 20), ("GPT-2, random weights", large, 5)):
        studies = Studies(written(folder, model, cells, steps), plugins)
        sides = [studies.side("each loads", EachLoads()), studies.side("sharing", Local())]
        timings = alternate(sides, settings.rounds(5), warmup=1)
        work = f"{cells} cells of {steps} steps, {label}"
        outcome.time(work, sides, timings)
        outcome.figure(f"{work}: each loads / sharing", timings.ratio("each loads", "sharing"))


def workers(outcome: Outcome, settings: Settings, folder: Path, plugins: Plugins) -> None:
    """On Ray: two workers against one, each with its own cluster from start to end."""
    try:
        import_ray()
    except Exception as error:
        outcome.notes.append(str(error))
        return
    cells = CELLS_QUICK if settings.quick else CELLS
    studies = Studies(written(folder, "demo", cells, STEPS), plugins)
    one, two = "one worker", "two workers"
    sides = [studies.side(one, OnRay(workers=1, cpus=1)), studies.side(two, OnRay(workers=2, cpus=1))]
    timings = alternate(sides, settings.rounds(ROUNDS), warmup=0)
    work = f"{cells} cells of {STEPS} steps, the embedded model"
    outcome.time(f"{work}, all", sides, timings)
    whole: list[tuple[str, Callable[[], Ratio]]] = [
        ("all", lambda: timings.ratio(one, two)),
        ("from the first cell's begin", lambda: by_round(studies.working[one], studies.working[two])),
    ]
    for what, ratio in whole:
        goal = GOAL if what == "all" and not settings.quick else None
        outcome.figure(f"{work}, {what}: {one} / {two}", ratio(), goal, "higher")
    for what, seconds in (("before the first cell", studies.starting), ("from then on", studies.working)):
        outcome.time(f"{work}, {what}", sides, Timings(seconds))
