"""Errors as sentences, each with the exit code that the command line gives it.

A message says what was wrong, what was expected and what to do. Anything else that is raised is a bug, and shows its
traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

# What allocators say beside what accelerate knows: the CPU's on other systems, CUDA's libraries, CUDA's own runtime,
# files that are mapped into memory, and C++.
_MEMORY = re.compile(
    r"not enough memory|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|CUDA error: out of memory|CUDA out of memory"
    r"|cannot allocate memory|std::bad_alloc",
    re.IGNORECASE,
)


# A sentence names what was wrong with the value itself, and the value may be a file's whole content.
MOST_CHARACTERS = 2000


class ProbekitError(Exception):
    """What a user can mend, in one line of visible characters: whatever else was in the sentence, as a name or a value
    that somebody else chose, is written as `\\x1b`, and what is too long to read lacks its middle.

    `exit_code` is the status that the command line ends with.
    """

    exit_code = 1

    def __init__(self, sentence: object = "") -> None:
        super().__init__(_cut(one_line(_cut(str(sentence)))))


def one_line(text: str) -> str:
    """A text of others for a terminal: one line of visible characters, where what is invisible is written as Python
    writes it, `\\x1b`.
    """
    lines = text.splitlines()
    text = " ".join(filter(None, map(str.strip, lines))) if len(lines) > 1 else "".join(lines)
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _cut(text: str) -> str:
    half = MOST_CHARACTERS // 2 - 3
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} […] {text[-half:]}"


class AnalysisError(ProbekitError):
    """An analysis could not be carried out (exit code 1)."""


class UsageError(ProbekitError):
    """A wrong request: unknown option, site or plugin, a bad value, a bad prompt or output directory (exit code 2)."""

    exit_code = 2


class BusyError(UsageError):
    """Another process is at work on what was asked for (exit code 2)."""


class PluginError(ProbekitError):
    """A requested plugin did not load (exit code 3)."""

    exit_code = 3


class ModelError(ProbekitError):
    """A model did not load, or is not one that probekit can read (exit code 4)."""

    exit_code = 4


class StorageError(ProbekitError):
    """What was found could not be written: a full disk, a permission that was lost, a folder that was removed (exit
    code 5). What was written before is whole. `folder` is where.
    """

    exit_code = 5

    def __init__(self, sentence: object = "", folder: Path | None = None) -> None:
        super().__init__(sentence)
        self.folder = folder

    @classmethod
    def of(cls, folder: Path, error: OSError) -> StorageError:
        """The sentence for what the system says of a folder."""
        if not folder.is_dir():
            return cls.removed(folder)
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        return cls(f"The folder '{folder}' cannot be written: {reason}; what was written before is whole.", folder)

    @classmethod
    def removed(cls, folder: Path) -> StorageError:
        """For a folder that is gone."""
        text = f"The folder '{folder}' was removed while it was written to; say the same again, into a new one."
        return cls(text, folder)


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' with the nearest known word, or an empty string if none is near."""
    match = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def quoted(value: object) -> str:
    """A value as Python writes it, or what it is where Python does not: a number of more than 4300 digits."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to write"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: a device's, the CPU's or Python's own."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = words(error)
    if not isinstance(error, RuntimeError) or "CUDNN_STATUS_NOT_SUPPORTED" in text:
        return False  # accelerate takes the latter for memory, but a shape that cuDNN does not take says it too
    return bool(should_reduce_batch_size(RuntimeError(text))) or _MEMORY.search(text) is not None


def words(error: BaseException) -> str:
    """What an exception says; nothing where saying it raises, which is its own code."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def described(error: BaseException) -> str:
    """Anything that was raised, as `Kind: words`, or the sentence itself of one of probekit's errors: in one line of
    visible characters that is not too long to read.
    """
    text = " ".join(words(error).split())
    name = type(error).__name__
    own = isinstance(error, ProbekitError) and text
    return str(ProbekitError(text if own else f"{name}: {text}" if text else name))


def size(count: float) -> str:
    """Bytes in words: `3.1 GiB`."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1000:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
