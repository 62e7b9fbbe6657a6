"""Run directories, compared byte for byte but for the times."""

from __future__ import annotations

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


def assert_same(found: Path, expected: Path) -> None:
    """The same files with the same bytes."""
    one, other = contents(found), contents(expected)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
