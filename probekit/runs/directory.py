"""The run directory: one folder that holds a run's manifest, results and report.

Files are written under a temporary name and renamed, so that each is whole or absent. Every time lives in
`timings.json`, so that the rest of two runs can be compared byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probekit.analysis import Result
from probekit.errors import UsageError
from probekit.files import written_whole

SCHEMA = 1


def encode_json(document: Any) -> bytes:
    """A JSON file of a run: indented, ended by a newline, without NaN."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


class RunDirectory:
    """Paths and atomic writes below one folder."""

    def __init__(self, path: Path, existed: bool = True, made_parents: Sequence[Path] = ()) -> None:
        self.path = path
        self._existed = existed
        self._made_parents = made_parents

    @classmethod
    def create(cls, path: Path, files: Mapping[str, bytes]) -> RunDirectory:
        """Make a new run directory that holds these files from its first moment.

        Raises UsageError if it exists (unless it is an empty folder) or cannot be written.
        """
        try:
            existed = path.exists()
            if existed and any(path.iterdir()):
                raise UsageError(
                    f"The output directory '{path}' exists and is not empty; choose another, or remove it."
                )
            made_parents = [parent for parent in path.parents if not parent.exists()]  # the nearest first
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path if existed else Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                directory = cls(made)
                for name, content in files.items():
                    directory.write(name, content)
                if not existed:
                    made.chmod(0o777 & ~_umask())
                    made.rename(path)
            except BaseException:
                if not existed:
                    shutil.rmtree(made, ignore_errors=True)
                raise
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"The output '{path}' is not a directory that can be made; choose another.") from None
        except OSError as error:
            raise UsageError(f"The output directory '{path}' cannot be written: {error.strerror}.") from None
        return cls(path, existed, made_parents)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory. Raises UsageError if it is none."""
        if not (path / "run.json").is_file():
            raise UsageError(f"'{path}' is no run directory: it has no run.json.")
        return cls(path)

    def analysis(self, name: str) -> Path:
        """The folder of one analysis."""
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
        """Write a file below the directory, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as place:
            place.write_bytes(content)

    def write_json(self, name: str, document: Any) -> None:
        self.write(name, encode_json(document))

    def read_json(self, name: str) -> Any:
        """A JSON file of the directory. Raises UsageError if it is missing, damaged, or of another schema."""
        try:
            document = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"The run '{self.path}' has no {name}.") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The file '{self.path / name}' is damaged: {error}.") from None
        if not isinstance(document, dict):
            raise UsageError(f"The file '{self.path / name}' is damaged: expected a table.")
        if name == "run.json" and document.get("schema") != SCHEMA:
            raise UsageError(
                f"The run '{self.path}' has another schema than {SCHEMA}; another version of probekit wrote it."
            )
        return document

    def append_event(self, event: dict[str, Any]) -> None:
        """Add a line to the events, unless it is there: a resumed run says again what it had said before it ended."""
        path, line = self.path / "events.jsonl", json.dumps(event, allow_nan=False)
        if line not in path.read_text(encoding="utf-8").splitlines():
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def sweep(self) -> None:
        """Remove the half-written files that a killed process left."""
        for temporary in self.path.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what `create` made of a directory in which nothing has been found yet, and leave what was there."""
        for path in [*self.path.iterdir()] if self._existed else [self.path]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for parent in self._made_parents:
            with contextlib.suppress(OSError):  # another run may have come to live there
                parent.rmdir()


def _parts(timings: Mapping[str, Any]) -> dict[str, Any]:
    """What analyses measured themselves, by their names."""
    parts = timings.get("parts")
    return parts if isinstance(parts, dict) else {}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
