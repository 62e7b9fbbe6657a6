"""Errors as sentences, each with the exit code that the command line gives it.

A message says what was wrong, what was expected and what to do. Anything else that is raised is a bug, and shows its
traceback.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches

# What allocators say beside what accelerate knows: the CPU's on other systems, CUDA's libraries, CUDA's own runtime,
# files that are mapped into memory, and C++.
_MEMORY = re.compile(
    r"not enough memory|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|CUDA error: out of memory|CUDA out of memory"
    r"|cannot allocate memory|std::bad_alloc",
    re.IGNORECASE,
)


class ProbekitError(Exception):
    """What a user can mend. `exit_code` is the status that the command line ends with."""

    exit_code = 1


class AnalysisError(ProbekitError):
    """An analysis could not be carried out (exit code 1)."""


class UsageError(ProbekitError):
    """A wrong request: unknown option, site or plugin, a bad value, a bad prompt or output directory (exit code 2)."""

    exit_code = 2


class PluginError(ProbekitError):
    """A requested plugin did not load (exit code 3)."""

    exit_code = 3


class ModelError(ProbekitError):
    """A model did not load, or is not one that probekit can read (exit code 4)."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' with the nearest known word, or an empty string if none is near."""
    match = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: a device's, the CPU's or Python's own."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError) or "CUDNN_STATUS_NOT_SUPPORTED" in str(error):
        return False  # accelerate takes the latter for memory, but a shape that cuDNN does not take says it too
    return bool(should_reduce_batch_size(error)) or _MEMORY.search(str(error)) is not None


def size(count: float) -> str:
    """Bytes in words: `3.1 GiB`."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1000:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
