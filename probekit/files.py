"""Files that are there whole or not at all, and folders that one process at a time works on."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from probekit.errors import BusyError, StorageError

LOCK = ".lock"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary place to write a file to; it gets its own if the block ends well, whole or not at all.

    It is on the disk before it has its name: a machine that loses its power leaves no empty file either.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _put_on_disk(path.parent)
    finally:
        with suppress(OSError):  # a folder that cannot be written any more has said so already
            temporary.unlink(missing_ok=True)


def _put_on_disk(folder: Path) -> None:
    """Have the disk keep the names in a folder, where the system can be asked to."""
    with suppress(OSError):
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, with the folders that it is in. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as place:
        place.write_bytes(content)


class Lock:
    """The right to work on something, which one process has at a time; the system takes it from a process that ends,
    however it ends.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock that the file `path` stands for. Raises BusyError, naming `what` is worked on, if another
        process has it, and OSError if the file cannot be made.
        """
        self._path = path
        self._lock = FileLock(path, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(
                f"Another process, or another part of this one, is at work on {what}; wait until it has ended, or end "
                "it, and say this again."
            ) from None

    def release(self, moved: Path | None = None) -> None:
        """Give it back and remove its file, which may have `moved` since: those who wait for it see that it is gone."""
        with suppress(OSError):
            (moved or self._path).unlink()
        with suppress(OSError):
            self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it until the block ends."""
        try:
            yield
        finally:
            self.release()


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Raises StorageError with one sentence where something cannot be written into a folder."""
    try:
        yield
    except OSError as error:
        raise StorageError.of(folder, error) from None
