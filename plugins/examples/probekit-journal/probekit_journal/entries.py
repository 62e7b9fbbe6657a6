"""From the lines of a journal to its runs: which lines belong together, and what became of a run that never ended."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from probekit import UsageError
from probekit_journal.lines import VARIABLE, Line

# What probekit says of a run that has ended, and what is said here of one that has not.
STATUSES = ("done", "failed", "interrupted", "abandoned", "running", "unfinished")

BEGUN_AGAIN = "begun again later"
THERE = "`probekit run --resume` goes on with it"
GONE = "its directory is gone"


@dataclass
class Entry:
    """One run from its start to its end. A run that is resumed has an entry for each time that it went on."""

    line: Line  # the newest
    start: Line | None = None
    begun_again: bool = False

    @property
    def began(self) -> datetime:
        """When it began, or when it ended if nothing says that."""
        return (self.start or self.line).time

    @property
    def resumed(self) -> bool:
        """Whether it went on with what an earlier run had left."""
        return self.start is not None and self.start.resumed

    @property
    def status(self) -> str:
        """One of `STATUSES`. A run that has not ended is running if its process is alive, as far as can be told."""
        if self.line.event == "finished":
            return self.line.status or "done"
        alive = not self.begun_again and self._is_there and _alive(self.line)
        return "running" if alive else "unfinished"

    @property
    def remark(self) -> str:
        """What can be done about a run that is unfinished."""
        if self.status != "unfinished":
            return ""
        if self.begun_again:
            return BEGUN_AGAIN
        return THERE if self._is_there else GONE

    @property
    def _is_there(self) -> bool:
        return Path(self.line.directory).is_dir()

    def document(self) -> dict[str, Any]:
        """The entry as JSON types."""
        line = self.line
        return {
            "time": self.began.isoformat(),
            "status": self.status,
            "resumed": self.resumed,
            "remark": self.remark,
            "seconds": line.seconds,
            "model": line.model,
            "analyses": line.analyses,
            "directory": line.directory,
            "findings": line.findings,
            "failures": line.failures,
        }


def read_journal(path: Path) -> tuple[list[Entry], int]:
    """The runs in a journal, in the order in which they began, and the number of lines that are no journal's.

    Raises UsageError with a sentence if there is no such file, if it cannot be read, or if none of its lines can.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"There is no journal '{path}'; it begins with the next run, or {VARIABLE} names another file."
        ) from None
    except OSError as error:
        raise UsageError(f"The journal '{path}' cannot be read: {error.strerror}.") from None
    lines, damaged = [], 0
    for text in filter(None, content.split(b"\n")):
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError:
            damaged += 1
    if damaged and not lines:
        raise UsageError(
            f"The file '{path}' is no journal: none of its lines is a run's; name a journal in {VARIABLE}."
        )
    return _entries(lines), damaged


def _entries(lines: Iterable[Line]) -> list[Entry]:
    """A line of an end belongs to the last start in its directory."""
    entries: list[Entry] = []
    begun: dict[str, Entry] = {}
    for line in lines:
        entry = begun.pop(line.directory, None)
        if line.event == "finished" and entry is not None:
            entry.line = line
            continue
        if entry is not None:
            entry.begun_again = True
        entries.append(Entry(line))
        if line.event == "started":
            entries[-1].start = line
            begun[line.directory] = entries[-1]
    return entries


def _alive(line: Line) -> bool:
    """Whether the process that wrote a line is there. Of another machine's it is not known, and taken to be."""
    if line.host != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(line.process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
