"""Options that are lists, given as one value or as several in one text. No torch."""

from __future__ import annotations


def listed(value: object) -> object:
    """One value, or several as `none,int8`, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]").split(",")]
    return [value] if isinstance(value, int | float) else value
