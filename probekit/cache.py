"""The cache: what takes long to make and follows from something that is there. Losing it costs time only.

It is in `$PROBEKIT_CACHE`, else `$XDG_CACHE_HOME/probekit`, else `~/.cache/probekit`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def directory() -> Path | None:
    """Where it is; None where there is no home, which nothing depends on."""
    own = os.environ.get("PROBEKIT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "probekit"
    except RuntimeError:
        return None


def read(name: str) -> bytes | None:
    """What is kept under a name, or None."""
    place = directory()
    try:
        return None if place is None else (place / name).read_bytes()
    except OSError:
        return None


def write(name: str, content: bytes) -> None:
    """Keep something under a name, as far as that is possible here."""
    place = directory()
    if place is None:
        return
    path = place / name
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own and then renamed, so that a second process never reads half a file.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
