"""A study, carried out: what is missing is run, cell by cell, and everything that is there is judged and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probekit.analysis import Listener
from probekit.analysis.context import Silent
from probekit.errors import UsageError
from probekit.plugins import Plugins
from probekit.runs.checkpoints import SECONDS_BETWEEN_SAVES
from probekit.runs.config import said
from probekit.runs.directory import RunDirectory, encode_json
from probekit.runs.outcome import Run, read_run
from probekit.runs.studies.cells import Cell, by_model, expand, share
from probekit.runs.studies.engines import Local
from probekit.runs.studies.file import StudyFile, read_study
from probekit.runs.studies.judge import Judgement, check_study, judge
from probekit.runs.studies.page import render_study
from probekit.runs.studies.work import Engine, Work, cell_folder, failure_file, status_of

DEFAULT_FOLDER = Path("probekit-studies")


@dataclass
class Study:
    """What a study came to: its folder, its cells by key, their sentences where they failed, and the judgements."""

    path: Path
    cells: list[Cell]
    runs: dict[str, Run] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    judgements: list[Judgement] = field(default_factory=list)

    def __repr__(self) -> str:
        """One line: where it is, what became of its cells, and whether it shows what it should."""
        cells = f"{self.done} done, {len(self.failures)} failed, {self.missing} missing"
        return f"Study({str(self.path)!r}, cells: {cells}; {'passed' if self.passed else 'not passed'})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the report, in a frame, without the links to those of the cells, which lead nowhere
        from there.
        """
        from probekit.runs.notebook import report_in_frame

        return report_in_frame(self.path / "alone.html", repr(self), "Draw it again with `probekit study`.")

    @property
    def report_path(self) -> Path:
        """The report, one HTML file, with links to those of the cells beside it."""
        return self.path / "report.html"

    @property
    def done(self) -> int:
        """How many different cells are done; one of which an analysis failed is not."""
        return len(set(self.runs) - set(self.failures))

    @property
    def missing(self) -> int:
        """How many different cells have neither a result nor a failure yet."""
        return len({cell.key for cell in self.cells} - set(self.runs) - set(self.failures))

    @property
    def passed(self) -> bool:
        """Whether no cell failed and every verdict is one that its expectation takes; missing cells do not tell."""
        return not self.failures and all(judgement.met is not False for judgement in self.judgements)

    def label(self, key: str) -> str:
        """The label of the first cell with this key."""
        return next(cell.label for cell in self.cells if cell.key == key)

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit study --json` prints."""
        return {
            "study": str(self.path),
            "report": str(self.report_path),
            "cells": {"done": self.done, "failed": len(self.failures), "missing": self.missing},
            "failures": {self.label(key): sentence for key, sentence in self.failures.items()},
            "passed": self.passed,
            "expectations": {
                judgement.label: {
                    "verdict": judgement.verdict,
                    "met": judgement.met,
                    "because": judgement.because,
                    "figures": judgement.figures,
                }
                for judgement in self.judgements
            },
        }


def study(
    path: str | Path,
    output: str | Path | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    shard: tuple[int, int] = (1, 1),
    retry_failed: bool = False,
    manager: Plugins | None = None,
    listener: Listener | None = None,
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
    engine: Engine | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Study:
    """Carry out a study file: run the cells of this share that are missing, then judge and draw all that are there.

    Each cell is a run directory below `output/cells`, named by its configuration, so that a second call repeats
    nothing, an interrupted cell goes on where it was, and the shares of several machines come together in one folder. A
    cell that fails does not end the others; `retry_failed` tries it again. `parameters` replace those of the file.
    `engine` carries the cells out: `Local()`, in this process, or `OnRay(…)`, on workers; the results are the same.
    With `trust_remote_code` and `allow_pickle` the models of the file that ask for these get them.
    Raises UsageError or PluginError with one sentence for a study that cannot be carried out.
    """
    path = Path(path)
    listener = listener or Silent()
    manager = manager or Plugins()
    file = read_study(path, parameters or {})
    cells = expand(file, manager, said(trust_remote_code=trust_remote_code, allow_pickle=allow_pickle))
    check_study(file, cells)
    folder = Path(output) if output is not None else DEFAULT_FOLDER / path.stem
    _claim(folder, path, file, cells)
    mine = {cell.key: cell for cell in reversed(share(cells, shard))}
    ordered = by_model([mine[key] for key in dict.fromkeys(cell.key for cell in cells) if key in mine])
    try:
        work = Work(folder, ordered, manager, listener, retry_failed, seconds_between_saves)
        (engine or Local()).carry_out(work)
    finally:
        outcome = _collect(folder, cells)
        outcome.judgements = [
            judgement
            for expectation in file.expectations
            for judgement in judge(expectation, cells, outcome.runs, file.parameters)
        ]
        render_study(RunDirectory(folder), file, path, parameters or {}, outcome)
    return outcome


def _claim(folder: Path, path: Path, file: StudyFile, cells: Sequence[Cell]) -> None:
    """Make the folder, or see that it is this study's own."""
    name = folder / "study.json"
    identity = {"study": path.name, "title": file.title, "cells": sorted({cell.key for cell in cells})}
    if name.is_file():
        found = RunDirectory(folder).read_json("study.json")
        if found.get("study") != path.name:
            raise UsageError(
                f"The folder '{folder}' holds the study '{found.get('study')}'; choose another output for '{path}'."
            )
    elif folder.exists() and not folder.is_dir():
        raise UsageError(f"The output '{folder}' is no directory; choose another.")
    elif folder.exists() and any(
        # What another share has made that begins at this moment.
        path.name not in ("cells", "study.json") and not path.name.startswith(".")
        for path in folder.iterdir()
    ):
        raise UsageError(f"The output directory '{folder}' exists and holds no study; choose another, or remove it.")
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        RunDirectory(folder).write("study.json", encode_json(identity))
    except OSError as error:
        raise UsageError(f"The output directory '{folder}' cannot be written: {error.strerror}.") from None


def _collect(folder: Path, cells: Sequence[Cell]) -> Study:
    """Every cell that is there, whoever ran it."""
    outcome = Study(folder, list(cells))
    for key in dict.fromkeys(cell.key for cell in cells):
        place = cell_folder(folder, key)
        failed = failure_file(folder, key)
        if failed.is_file() and status_of(folder, key) != "done":
            outcome.failures[key] = RunDirectory(folder).read_json(f"cells/{failed.name}")["error"]
        elif (place / "run.json").is_file():
            try:
                run = read_run(place)
            except UsageError as error:
                outcome.failures[key] = str(error)
                continue
            if run.status == "failed":
                outcome.failures[key] = "; ".join(f"{name}: {sentence}" for name, sentence in run.failures.items())
            if run.status == "done" or (run.status == "failed" and run.results):
                outcome.runs[key] = run
    return outcome
