"""A worker: a process somewhere that keeps the model of its last cell and carries out one cell after another.

Nothing here knows Ray, and nothing is imported by torch until the worker has its settings.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from probekit.analysis.context import Silent
from probekit.plugins import Plugins
from probekit.runs.checkpoints import StopFlag
from probekit.runs.config import grants_of, resolve
from probekit.runs.studies.cells import Cell, key_of
from probekit.runs.studies.work import carry_out_cell, note_failure
from probekit.runs.subjects import Subjects
from probekit.runs.versions import versions

SECONDS_TO_SEE = (0.0, 0.5, 1.0, 3.0)


@dataclass(frozen=True)
class Settings:
    """What a worker is told: the study's folder as the caller names it, the caller's working directory and environment,
    plugins to leave out, threads, and the name and content of a file that shows whether the folder is the same.
    """

    folder: Path
    working_directory: Path
    environment: dict[str, str]
    block_plugins: list[str]
    threads: int
    seconds_between_saves: float
    token: tuple[str, str]


class Ready(NamedTuple):
    """What a worker says of itself: where it is, whether it sees the study's folder, and its packages' versions."""

    host: str
    process: int
    sees_folder: bool
    versions: dict[str, str]
    plugins: dict[str, str]


class Sent(NamedTuple):
    """A cell on its way to a worker: the values that its configuration is resolved from there."""

    run: str
    variables: dict[str, Any]
    values: dict[str, Any]
    key: str


class Ended(NamedTuple):
    """What became of a cell, with a sentence if it failed."""

    how: Literal["done", "failed", "interrupted"]
    sentence: str = ""


def states_of(plugins: Plugins) -> dict[str, str]:
    """Of each plugin, by its name, whether it loaded."""
    return {record.name: record.status for record in plugins.records}


class Worker:
    """What Ray makes an actor of. `stop` is called while `carry_out` runs, from another thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._subjects = Subjects()
        self._stop = StopFlag()

    def get_ready(self) -> Ready:
        """Take the caller's settings over and look around."""
        settings = self._settings
        os.environ.update(settings.environment)
        self._folder = settings.folder
        if settings.working_directory.is_dir():  # what a study names by a relative path is seen from there
            os.chdir(settings.working_directory)
        else:
            self._folder = settings.working_directory / settings.folder
        import torch

        torch.set_num_threads(settings.threads)
        self._plugins = Plugins(settings.block_plugins)
        here = (socket.gethostname(), os.getpid(), self._sees_folder())
        return Ready(*here, versions(self._plugins), states_of(self._plugins))

    def _sees_folder(self) -> bool:
        """Whether the caller's file is there: on a network's disk perhaps some seconds later."""
        name, content = self._settings.token
        for wait in SECONDS_TO_SEE:
            time.sleep(wait)
            with suppress(OSError):
                if (self._folder / name).read_text(encoding="utf-8") == content:
                    return True
        return False

    def carry_out(self, sent: Sent) -> Ended:
        """Carry out a cell, or go on with it; what it finds is in its folder then."""
        # What it asks for beyond reading data was granted where the study was called.
        resolved = resolve([(sent.run, sent.values)], self._plugins, grants_of(sent.values))
        cell = Cell(sent.run, sent.variables, resolved, key_of(resolved), sent.values)
        if cell.key != sent.key:
            sentence = (
                f"The worker on {socket.gethostname()} has other options for its analyses than there are where the "
                "study was called; install the same plugins on every machine."
            )
            note_failure(self._folder, Cell(sent.run, sent.variables, resolved, sent.key), sentence)
            return Ended("failed", sentence)
        seconds = self._settings.seconds_between_saves
        try:
            sentence = carry_out_cell(self._folder, cell, self._plugins, Silent(), seconds, self._subjects, self._stop)
        except KeyboardInterrupt:
            return Ended("interrupted")
        return Ended("failed", sentence) if sentence else Ended("done")

    def stop(self) -> None:
        """Ask for an end of the cell at the end of the step that it is in; all of it is saved."""
        self._stop.asked = True
