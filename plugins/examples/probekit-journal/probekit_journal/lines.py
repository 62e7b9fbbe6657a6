"""The journal's file: where it is, what a line of it says, and how one is added to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel

from probekit import UsageError

VARIABLE = "PROBEKIT_JOURNAL"


class Line(BaseModel):
    """One line, a JSON object: a run has begun, or has ended. What is not known to this version is passed over."""

    event: Literal["started", "finished"]
    time: AwareDatetime
    directory: str
    model: str
    analyses: list[str]
    process: int
    host: str
    # Of a run that begins.
    resumed: bool = False
    # Of a run that has ended.
    status: str | None = None
    seconds: float | None = None
    findings: dict[str, str] = {}
    failures: dict[str, str] = {}


def line_of(
    event: Literal["started", "finished"], directory: Path, configuration: Mapping[str, Any], **more: Any
) -> Line:
    """A line of this moment about a run with that configuration, in the shape of a run's `config.toml`."""
    return Line(
        event=event,
        time=datetime.now().astimezone().replace(microsecond=0),
        directory=encodable(str(directory)),
        model=encodable(configuration["model"]["name"]),
        analyses=configuration["plugins"],
        process=os.getpid(),
        host=socket.gethostname(),
        **more,
    )


def encodable(text: str) -> str:
    """The text with an escape for each byte of a file name, or half of a character, that UTF-8 cannot say."""
    return text.encode(errors="backslashreplace").decode()


def journal_path() -> Path:
    """The file that `PROBEKIT_JOURNAL` names, or `probekit/journal.jsonl` in the user's state folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # as the specification has it; an empty one too
        state = Path.home() / ".local" / "state"
    return state / "probekit" / "journal.jsonl"


def append(line: Line) -> None:
    """Add a line to the journal, which several processes may do at once. Raises UsageError with a sentence.

    One write to a file opened with O_APPEND goes to its end, whole: no lock is needed, and none is left by a process
    that is killed.
    """
    path = journal_path()
    text = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if not _ends_a_line(file):  # a disk was full: the torn line shall not take this one with it
                text = b"\n" + text
            if os.write(file, text) < len(text):
                raise OSError(0, "the disk is full")
        finally:
            os.close(file)
    except OSError as error:
        raise UsageError(
            f"The journal '{path}' could not be written: {error.strerror or error}; name another file in {VARIABLE}."
        ) from None


def _ends_a_line(file: int) -> bool:
    size = os.lseek(file, 0, os.SEEK_END)
    if size == 0:
        return True
    os.lseek(file, size - 1, os.SEEK_SET)
    return os.read(file, 1) == b"\n"
