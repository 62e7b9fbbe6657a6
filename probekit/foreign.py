"""Reading what somebody else may have written: files that are files, and JSON whose numbers are finite."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

from probekit.errors import UsageError


def checked_file(path: Path) -> Path:
    """The path of a file that is about to be read, or that is not there.

    Raises UsageError for a link, which may lead to a file of others, and for a pipe or the like, which a reader would
    wait for without end.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):  # whoever reads it says why it cannot be
        return path
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        what = "a link" if stat.S_ISLNK(mode) else "a pipe or a device"
        raise UsageError(f"The file '{path}' is {what}; put the file itself there.")
    return path


def from_json(text: str) -> Any:
    """What a JSON text says. Raises ValueError for one that is none, that is nested too deeply, or that has a number
    that is not finite, such as NaN or 1e999.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value
