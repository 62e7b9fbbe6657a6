"""What differs between runs, as plain data: settings, facts of the loaded models, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probekit.analysis.result import Scalar

# A value for each side that has one, by the side's place in the comparison.
BySide = dict[int, Any]


@dataclass(frozen=True)
class Difference:
    """A metric's difference to the first side's: `b − a`, and `(b − a)/|a|` where a share of a means something."""

    absolute: float | int
    relative: float | None


@dataclass(frozen=True)
class Metric:
    """One metric of several sides. A side that lacks it is not in `values`, and text has no difference."""

    name: str
    values: dict[int, Scalar]
    differences: dict[int, Difference]

    def differs(self, sides: int) -> bool:
        """Whether it is not the same figure on every side; 1 and True, or 1 and 1.0, are the same."""
        return len(self.values) < sides or any(value != self.values[0] for value in self.values.values())


def settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run as one flat mapping: `model.dtype`, `seed`, `options.gradient-inverter.steps`, …"""
    configuration = dict(manifest["configuration"])
    flat = {f"model.{key}": value for key, value in dict(configuration.pop("model")).items()}
    options = dict(configuration.pop("options"))
    flat |= configuration
    for analysis, chosen in options.items():
        flat |= {f"options.{analysis}.{key}": value for key, value in dict(chosen).items()}
    return flat


def differing(sides: Sequence[Mapping[str, Any]]) -> dict[str, BySide]:
    """The keys whose value is not the same on every side, in order of first appearance."""
    rows: dict[str, BySide] = {}
    for key in dict.fromkeys(key for side in sides for key in side):
        values = {number: side[key] for number, side in enumerate(sides) if key in side}
        if len(values) < len(sides) or any(value != values[0] for value in values.values()):
            rows[key] = values
    return rows


def metrics_of(sides: Sequence[Mapping[str, Scalar]]) -> list[Metric]:
    """The metrics of all sides, in order of first appearance, with their differences to the first side."""
    found = []
    for name in dict.fromkeys(name for side in sides for name in side):
        values = {number: side[name] for number, side in enumerate(sides) if name in side}
        between = {number: difference(values.get(0), value) for number, value in values.items() if number}
        found.append(Metric(name, values, {number: gap for number, gap in between.items() if gap}))
    return found


def difference(reference: Scalar, value: Scalar) -> Difference | None:
    """The difference of two numbers; None for anything else, or where it is beyond a float.

    It is relative only to a reference that is not zero and of the same sign.
    """
    if not _is_number(reference) or not _is_number(value):
        return None
    assert isinstance(reference, int | float)
    assert isinstance(value, int | float)
    try:
        absolute = value - reference
        relative = absolute / abs(reference) if reference and value * reference >= 0 else None
    except OverflowError:
        return None
    if not math.isfinite(absolute):
        return None
    return Difference(absolute, relative if relative is not None and math.isfinite(relative) else None)


def named(key: str) -> str:
    """A setting's name as `-o` takes it: `gradient-inverter.steps`; another one's as it is, `model.dtype`."""
    return key.removeprefix("options.")


def shown(value: Any) -> str:
    """A setting for a reader: text as it is, several in quotation marks, figures in a row, everything else as JSON."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(f"“{part}”" for part in value) or "none"
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return ", ".join(map(str, value))  # of one figure that is the figure: an option may be one or several
    return json.dumps(value, ensure_ascii=False)


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
