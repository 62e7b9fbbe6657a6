"""The run directory: one folder that holds a run's manifest, results and report.

Files are written under a temporary name and renamed, so that each is whole or absent. Every time lives in
`timings.json`, so that the rest of two runs can be compared byte for byte. `run.json` is written last: until it says
that the run is done, the run is unfinished, and can be resumed. One process at a time works on it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from probekit.analysis import Result
from probekit.errors import BusyError, UsageError
from probekit.files import LOCK, Lock, storing, write_whole
from probekit.foreign import checked_file, from_json

# What this version writes, and what it reads: runs of 0.1.0 had no hashes of their files.
SCHEMA = 2
READABLE = (1, 2)
# Names of analyses, which are folders.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def encode_json(document: Any) -> bytes:
    """A JSON file of a run: indented, ended by a newline, without NaN."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


class RunDirectory:
    """Paths and atomic writes below one folder. What `create` and `open_to_write` return is a context manager: other
    processes are kept from the run until it ends.
    """

    def __init__(
        self, path: Path, made: Sequence[Path] = (), made_parents: Sequence[Path] = (), lock: Lock | None = None
    ) -> None:
        self.path = path
        self._made = made
        self._made_parents = made_parents
        self._lock = lock

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release(self.path / LOCK)

    @classmethod
    def create(cls, path: Path, files: Mapping[str, bytes]) -> RunDirectory:
        """Make a new run directory that holds these files from its first moment.

        Raises UsageError if it exists (unless it is an empty folder) or cannot be written.
        """
        try:
            existed = path.exists()
            if existed and any(entry.name != LOCK for entry in path.iterdir()):
                raise UsageError(
                    f"The output directory '{path}' exists and is not empty; choose another, or remove it."
                )
            made_parents = [parent for parent in path.parents if not parent.exists()]  # the nearest first
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path if existed else Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            lock = None
            try:
                lock = Lock(made / LOCK, f"'{path}'")
                if existed and [entry.name for entry in path.iterdir()] != [LOCK]:
                    raise BusyError(_begun_by_another(path))
                for name, content in files.items():
                    write_whole(made / name, content)
                if not existed:
                    made.chmod(made.stat().st_mode & 0o7000 | 0o777 & ~_umask())  # with the group of a shared folder
                    made.rename(path)
            except BaseException:
                if lock is not None:
                    lock.release()
                if not existed:
                    shutil.rmtree(made, ignore_errors=True)
                raise
        except (FileExistsError, NotADirectoryError) as error:
            if path.is_dir() and error.errno == errno.EEXIST:
                raise BusyError(_begun_by_another(path)) from None
            raise UsageError(f"The output '{path}' is not a directory that can be made; choose another.") from None
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise BusyError(_begun_by_another(path)) from None
            raise UsageError(f"The output directory '{path}' cannot be written: {error.strerror}.") from None
        return cls(path, [path] if not existed else [path / name for name in files], made_parents, lock)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory, to be read. Raises UsageError if it is none, or if it has links in it, which may
        lead to files of others.
        """
        try:
            found = (path / "run.json").is_file()
            link = next(links(path), None)
        except (OSError, ValueError) as error:
            raise UsageError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        if not found:
            raise UsageError(f"'{path}' is no run directory: it has no run.json.")
        if link is not None:
            raise UsageError(
                f"The run '{path}' has a link or a pipe in it, '{link}', which no run has; put the file itself there."
            )
        return cls(path)

    @classmethod
    def open_to_write(cls, path: Path) -> RunDirectory:
        """An existing run directory, to go on with. Raises UsageError as `open` does, or if another process is at work
        on it, and StorageError if it cannot be written.
        """
        cls.open(path)
        with storing(path):
            return cls(path, lock=Lock(path / LOCK, f"the run '{path}'"))

    def analysis(self, name: str) -> Path:
        """The folder of one analysis. Raises UsageError for a name that would be a folder elsewhere."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(f"The run '{self.path}' is damaged: {name!r} is no name of an analysis.")
        return self.path / "analyses" / name

    def result(self, name: str) -> Result:
        """The saved result of one analysis, with the times that it measured. Raises UsageError as `Result.read` does,
        or if the times are damaged.
        """
        result = Result.read(self.analysis(name))
        if (self.path / "timings.json").is_file():
            seconds = _parts(self.read_json("timings.json")).get(name, {})
            if not isinstance(seconds, dict):
                raise UsageError(f"The file '{self.path / 'timings.json'}' is damaged: expected a table of times.")
            result.seconds = seconds
        return result

    def write_seconds(self, name: str, seconds: Mapping[str, float]) -> None:
        """Keep the times that one analysis measured, in place of earlier ones."""
        timings = self.read_json("timings.json")
        parts = {**_parts(timings), name: dict(seconds)}
        if seconds or name in _parts(timings):
            self.write_json("timings.json", {**timings, "parts": parts})

    def forget(self, name: str) -> None:
        """Remove what one analysis has saved."""
        shutil.rmtree(self.analysis(name), ignore_errors=True)

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def write(self, name: str, content: bytes) -> None:
        """Write a file below the directory, whole or not at all. Raises StorageError if that is not possible, and does
        not make a directory anew that was removed.
        """
        with storing(self.path):
            if not self.path.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            write_whole(self.path / name, content)

    def write_json(self, name: str, document: Any) -> None:
        self.write(name, encode_json(document))

    def read_json(self, name: str) -> Any:
        """A JSON file of the directory. Raises UsageError if it is missing, damaged, or of another schema."""
        if not set(PurePosixPath(name).parts).isdisjoint({"..", "/"}) or "\0" in name:  # of a file that names another
            raise UsageError(f"The run '{self.path}' is damaged: {name!r} is no file of it.")
        try:
            document = from_json(checked_file(self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"The run '{self.path}' has no {name}.") from None
        except OSError as error:
            raise UsageError(f"The file '{self.path / name}' cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise UsageError(f"The file '{self.path / name}' is damaged: {error}.") from None
        if not isinstance(document, dict):
            raise UsageError(f"The file '{self.path / name}' is damaged: expected a table.")
        if name == "run.json" and document.get("schema") not in READABLE:
            raise UsageError(
                f"The run '{self.path}' has the schema {document.get('schema')!r}, and this probekit reads "
                f"{' and '.join(map(str, READABLE))}: another version wrote it."
            )
        return document

    def append_event(self, event: dict[str, Any]) -> None:
        """Add a line to the events, unless it is there: a resumed run says again what it had said before it ended."""
        path, line = self.path / "events.jsonl", json.dumps(event, allow_nan=False)
        with storing(self.path):
            said = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            *whole, torn = said.split("\n")
            if torn:  # a process was killed, or a disk full, in the middle of it
                self.write("events.jsonl", "".join(f"{each}\n" for each in whole).encode())
            if line not in whole:
                with path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")

    def sweep(self) -> None:
        """Remove the half-written files that a killed process left."""
        with storing(self.path):
            for temporary in self.path.rglob(".*.tmp"):
                temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what `create` made of a directory in which nothing has been found yet, and leave what was there."""
        for path in self._made:
            if path == self.path:
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        for parent in self._made_parents:
            with contextlib.suppress(OSError):  # another run may have come to live there
                parent.rmdir()


def _begun_by_another(path: Path) -> str:
    return f"Another process has begun a run in '{path}'; choose another output directory."


def links(folder: Path) -> Iterator[str]:
    """What there is below a folder that is no file and no folder of its own: symbolic links, none of which is followed,
    and pipes and the like, of which a reader would wait for ever.
    """
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                yield path.relative_to(folder).as_posix()


def _parts(timings: Mapping[str, Any]) -> dict[str, Any]:
    """What analyses measured themselves, by their names."""
    parts = timings.get("parts")
    return parts if isinstance(parts, dict) else {}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
