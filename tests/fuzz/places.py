"""Folders for hostile files: in memory where the system has such a place, made anew for each input and removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder `own` with a folder `outside` beside it, into which nothing may look."""
    around = Path(tempfile.mkdtemp(prefix="probekit-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        own = around / "own"
        own.mkdir()
        (around / "outside").mkdir()
        yield own
    finally:
        shutil.rmtree(around, ignore_errors=True)
