"""The figures of a saved result once more, from its tensors: whether a report says what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from probekit.analysis import Result

if TYPE_CHECKING:
    from probekit.analysis import Analysis

# Figures that were computed in double precision and again from tensors in single precision.
RELATIVE, ABSOLUTE = 1e-5, 1e-12
# So many differences are told one by one.
TOLD = 5


@dataclass
class Recomputed:
    """How many figures of a result came out as they are saved, which did not, and which were not computed again."""

    equal: int = 0
    different: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def recompute(analysis: Analysis[Any], saved: Result) -> Recomputed:
    """Compare a saved result's metrics, tables and finding with what `Analysis.recompute` makes of its tensors, token
    sequences and files alone.

    Raises what the analysis raises.
    """
    measured = replace(saved, finding="", metrics={}, tables={}, notes=[], seconds={})
    return compared(saved, analysis.recompute(measured) or Result())


def compared(saved: Result, again: Result) -> Recomputed:
    """Every figure of a saved result against the same one of another."""
    found = Recomputed()
    _compare(found, saved.metrics, again.metrics, "the metric '{}'")
    for name, rows in saved.tables.items():
        if name not in again.tables:
            if any(rows):
                found.left_out.append(f"the table '{name}'")
        elif len(again.tables[name]) != len(rows):
            found.different.append(f"the table '{name}' has {len(rows)} rows, recomputed {len(again.tables[name])}")
        else:
            _compare_rows(found, name, rows, again.tables[name])
    for kind, one, other in (("metric", again.metrics, saved.metrics), ("table", again.tables, saved.tables)):
        found.different += [f"the {kind} '{name}' is missing" for name in one if name not in other]
    if saved.finding or again.finding:
        texts = ({"finding": saved.finding}, {"finding": again.finding} if again.finding else {})
        _compare(found, *texts, "the {}")
    return found


def _compare_rows(
    found: Recomputed, table: str, rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> None:
    left_out: dict[str, None] = {}
    for number, (row, other) in enumerate(zip(rows, others, strict=True)):
        here = Recomputed()
        _compare(here, row, other, f"the table '{table}', row {number}, column '{{}}'")
        missing = [f"the table '{table}', row {number}: no column '{column}'" for column in other if column not in row]
        found.equal += here.equal
        found.different += here.different + missing
        left_out |= dict.fromkeys(f"the table '{table}', column '{column}'" for column in row if column not in other)
    found.left_out += left_out


def _compare(found: Recomputed, saved: Mapping[str, Any], again: Mapping[str, Any], what: str) -> None:
    for name, value in saved.items():
        if name not in again:
            found.left_out.append(what.format(name))
        elif same(value, again[name]):
            found.equal += 1
        else:
            found.different.append(f"{what.format(name)} is {value!r}, recomputed {again[name]!r}")


def same(saved: object, again: object) -> bool:
    """Whether two figures are one but for rounding; what is no fraction must be the very same."""
    if isinstance(saved, bool) or isinstance(again, bool) or not isinstance(saved, int | float):
        return type(saved) is type(again) and saved == again
    if not isinstance(again, int | float):
        return False
    if isinstance(saved, int) and isinstance(again, int):
        return saved == again
    try:
        return math.isclose(saved, again, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except OverflowError:  # a whole number that no float is
        return False


def listed(parts: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(parts) - TOLD
    return "; ".join(parts[:TOLD]) + (f"; and {more} more" if more > 0 else "")
