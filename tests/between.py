"""The part of a page between two markers, which is written by what measures it."""

from __future__ import annotations

from pathlib import Path

Markers = tuple[str, str]


def between(page: Path, markers: Markers) -> str:
    """What stands there."""
    return page.read_text(encoding="utf-8").partition(markers[0])[2].partition(markers[1])[0]


def write_between(page: Path, markers: Markers, text: str) -> None:
    """Put a text there, in the place of what stood there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(markers[0])
    _, _, after = rest.partition(markers[1])
    page.write_text(f"{before}{markers[0]}\n\n{text}\n{markers[1]}{after}", encoding="utf-8")
