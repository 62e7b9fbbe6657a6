"""Disks that fail: the n-th write below a folder, and all after it, fail as the system makes them fail."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FULL, FORBIDDEN, READ_ONLY = errno.ENOSPC, errno.EACCES, errno.EROFS
REMOVED = -1


class Disk:
    """Counts the writes below a folder: files that are opened to be written, flushed, renamed and made. From the n-th
    on, all of them fail; of a disk that is full, the first leaves half a file behind.
    """

    def __init__(self, folder: Path, fails_at: int | None = None, how: int = FULL) -> None:
        self.writes = 0
        self._folder = str(folder)
        self._fails_at = fails_at
        self._how = how

    @property
    def failed(self) -> bool:
        return self._fails_at is not None and self.writes >= self._fails_at

    def _counted(self, path: object) -> None:
        if not isinstance(path, str | os.PathLike) or not str(Path(path).absolute()).startswith(self._folder):
            return
        self.writes += 1
        if not self.failed:
            return
        if self._how == REMOVED:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        raise OSError(self._how, os.strerror(self._how), str(path))

    @contextmanager
    def __call__(self) -> Iterator[Disk]:
        """While open, the disk is this one."""
        with pytest.MonkeyPatch.context() as patch:
            opened = io.open

            def open_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
                if set(mode) & set("wax+"):
                    self._counted(file)
                return opened(file, mode, *rest, **named)

            patch.setattr(io, "open", open_file)
            patch.setattr(builtins, "open", open_file)
            for name in ("replace", "rename", "mkdir"):
                patch.setattr(os, name, self._failing(getattr(os, name)))
            yield self

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self._counted(given[-1] if len(given) > 1 and isinstance(given[1], str | os.PathLike) else given[0])
            return function(*given, **named)

        return call
