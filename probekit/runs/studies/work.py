"""What an engine gets: the cells of a study that are its own, where they go, and how one of them is carried out."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from probekit.analysis import Listener
from probekit.errors import BusyError, ProbekitError, StorageError, UsageError
from probekit.files import Lock, storing
from probekit.models.spec import GRANTS
from probekit.plugins import Plugins
from probekit.runs.checkpoints import StopFlag
from probekit.runs.directory import RunDirectory, encode_json
from probekit.runs.execute import execute, resume
from probekit.runs.keeping import explain
from probekit.runs.studies.cells import Cell
from probekit.runs.subjects import Subjects


@dataclass(frozen=True)
class Work:
    """The cells of one call in the order in which they are begun, those of one model together."""

    folder: Path
    cells: Sequence[Cell]
    plugins: Plugins
    listener: Listener
    retry_failed: bool
    seconds_between_saves: float

    def waits(self, cell: Cell) -> bool:
        """Whether there is something to do for a cell: it is not done, or failed and is to be tried again."""
        status = status_of(self.folder, cell.key)
        if status in ("done", "damaged"):  # the latter is shown as a failure, and not begun anew over what is there
            return False
        failed = status == "failed" or failure_file(self.folder, cell.key).is_file()
        return self.retry_failed or not failed

    def name(self, cell: Cell) -> str:
        """`Cell 3 of 40`."""
        number = next(number for number, each in enumerate(self.cells, start=1) if each.key == cell.key)
        return f"Cell {number} of {len(self.cells)}"


class Engine(Protocol):
    """A way to get the cells of a study done. It judges nothing and draws nothing: the study does, at the end."""

    def carry_out(self, work: Work) -> None:
        """Carry out every cell that waits. What keeps one from its end is noted beside it and does not end the others.

        Raises KeyboardInterrupt after an interrupt, when all that is begun is saved.
        """


def cell_folder(folder: Path, key: str) -> Path:
    """The run directory of a cell."""
    return folder / "cells" / key


def status_of(folder: Path, key: str) -> str:
    """The status of a cell's run: nothing if it was not begun, `damaged` if it cannot be read."""
    place = cell_folder(folder, key)
    if not (place / "run.json").is_file():
        return ""
    try:
        return str(RunDirectory(place).read_json("run.json").get("status"))
    except UsageError:
        return "damaged"


def failure_file(folder: Path, key: str) -> Path:
    """Where it is noted why a cell could not be carried out."""
    return folder / "cells" / f"{key}.failed.json"


def carry_out_cell(
    folder: Path,
    cell: Cell,
    plugins: Plugins,
    listener: Listener,
    seconds: float,
    subjects: Subjects,
    stop: StopFlag | None = None,
) -> str:
    """Carry out a cell, or go on with it; returns what failed in a sentence. What keeps it from beginning is noted
    beside it. A cell that another process is at work on, or has done meanwhile, is left to it.

    Raises KeyboardInterrupt after an interrupt, and StorageError if the folder cannot be written.
    """
    try:
        with storing(folder):
            lock = Lock(folder / "cells" / f".{cell.key}.lock", cell.label)
        with lock.held():
            if status_of(folder, cell.key) == "done":
                return ""
            return _carry_out(folder, cell, plugins, listener, seconds, subjects, stop)
    except BusyError:
        listener.message(f"{cell.label}: another process is at work on it, and it is left to that.")
        return ""


def _carry_out(
    folder: Path,
    cell: Cell,
    plugins: Plugins,
    listener: Listener,
    seconds: float,
    subjects: Subjects,
    stop: StopFlag | None,
) -> str:
    place = cell_folder(folder, cell.key)
    with storing(folder):
        failure_file(folder, cell.key).unlink(missing_ok=True)
    try:
        if (place / "run.json").is_file():
            model = cell.resolved.config.model
            granted = {name: getattr(model, name) for name in GRANTS}
            run = resume(place, plugins, listener, seconds, subjects=subjects, stop=stop, **granted)
        else:
            # What a process has left that was killed while it made the folder, or removed it.
            for half in (place, *place.parent.glob(f".{place.name}.*")):
                if half.is_dir():
                    shutil.rmtree(half, ignore_errors=True)
            run = execute(cell.resolved, plugins, place, listener, (), seconds, subjects=subjects, stop=stop)
    except (StorageError, BusyError):
        raise
    except (Exception, SystemExit) as error:  # a bug, or a plugin's: the other cells are still to be run
        sentence = explain(error)
        trace = "" if isinstance(error, ProbekitError) else traceback.format_exc()
        note_failure(folder, cell, sentence, trace)
        return sentence
    return "; ".join(f"{name}: {sentence}" for name, sentence in run.failures.items())


def note_failure(folder: Path, cell: Cell, sentence: str, trace: str = "") -> None:
    """Note beside a cell why it could not be carried out."""
    document = {"cell": cell.label, "error": sentence, **({"traceback": trace} if trace else {})}
    RunDirectory(folder).write(f"cells/{cell.key}.failed.json", encode_json(document))
