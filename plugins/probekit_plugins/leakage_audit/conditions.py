"""How the conditions of an audit are named. No torch."""

from __future__ import annotations

from typing import Any

# What activations pass through that are taken as they are.
NONE = "none"
Row = dict[str, Any]


def parts(row: Row) -> list[str]:
    """What tells a condition from the others: the parts of its figures' names."""
    through = [] if passes(row) == NONE else [f"through {passes(row)}"]
    return [str(row["site"]), *through, str(row["precision"]), f"noise {row['noise']}"]


def prefix(row: Row) -> str:
    """What the names of a condition's figures and tensors begin with."""
    return "/".join(parts(row))


def passes(row: Row) -> str:
    """The autoencoder that the activations passed through."""
    return str(row.get("through", NONE))


def taken(row: Row) -> str:
    """How the activations were taken, but for the noise: `as it is`, `int8`, `through plain-8, int8`."""
    through = [] if passes(row) == NONE else [f"through {passes(row)}"]
    rounded = [] if row["precision"] == "none" else [str(row["precision"])]
    return ", ".join([*through, *rounded]) or "as it is"
