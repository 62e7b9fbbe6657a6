"""TOML files, which somebody else may have written."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from probekit.errors import UsageError

MOST_PARTS = 100  # of a key, `a.b.c`; tomllib takes the square of their number, minutes for a file of 50 kB
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"""(?<![\w"'-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MOST_PARTS}}}""")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The values of a TOML file; `what` it is stands first in a sentence: "The configuration".

    Raises UsageError if it cannot be read or is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if _LONG_KEY.search(text):
            raise UsageError(f"{what} '{path}' has a key of more than {MOST_PARTS} parts, a.b.c; expected a few.")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{what} '{path}' cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # not only tomllib's own: a number of 5000 digits is Python's
        raise UsageError(f"{what} '{path}' is not TOML: {error}.") from None
