"""The run directory: one folder that holds a run's manifest, results and report.

Files are written under a temporary name and renamed, so that each is whole or absent. Every time lives in
`timings.json`, so that the rest of two runs can be compared byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from probekit.errors import UsageError

SCHEMA = 1


class RunDirectory:
    """Paths and atomic writes below one folder."""

    def __init__(self, path: Path, existed: bool = True) -> None:
        self.path = path
        self._existed = existed

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make a new run directory. Raises UsageError if it exists (unless it is an empty folder) or cannot be
        written.
        """
        try:
            existed = path.exists()
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UsageError(
                    f"The output directory '{path}' exists and is not empty; choose another, or remove it."
                )
            directory = cls(path, existed)
            directory.write("events.jsonl", b"")
        except FileExistsError:
            raise UsageError(f"The output '{path}' exists and is not a directory; choose another.") from None
        except OSError as error:
            raise UsageError(f"The output directory '{path}' cannot be written: {error.strerror}.") from None
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run directory. Raises UsageError if it is none."""
        if not (path / "run.json").is_file():
            raise UsageError(f"'{path}' is no run directory: it has no run.json.")
        return cls(path)

    def analysis(self, name: str) -> Path:
        """The folder of one analysis."""
        return self.path / "analyses" / name

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def write(self, name: str, content: bytes) -> None:
        """Write a file below the directory, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, document: Any) -> None:
        self.write(name, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())

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
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False) + "\n")

    def discard(self) -> None:
        """Remove what `create` made of a directory in which nothing has been found yet."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._existed:
            self.path.mkdir(exist_ok=True)
