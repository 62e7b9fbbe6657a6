"""What a benchmark found, as plain data, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.measure import Ratio, Side, Timings


@dataclass(frozen=True)
class Settings:
    """How much to do: a quick run says whether everything works, a full one gives figures."""

    quick: bool = False

    def rounds(self, full: int) -> int:
        """The rounds of a full run, or 3."""
        return min(full, 3) if self.quick else full


@dataclass(frozen=True)
class Figure:
    """One figure with its spread and, where it has one, the goal that was set for it before it was measured."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = "×"
    goal: float | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def met(self) -> bool | None:
        """Whether it reaches its goal; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def cells(self) -> list[str]:
        """Its row: what, value, spread, goal, and whether that is met."""
        spread = "" if self.low is None or self.high is None else f"{_shown(self.low)} – {_shown(self.high)}"
        goal = "" if self.goal is None else f"{'≤' if self.better == 'lower' else '≥'} {self.goal:g}"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return [self.what, f"{_shown(self.value)} {self.unit}", spread, goal, met]


@dataclass(frozen=True)
class Series:
    """How something grows: rows of a name, what it grows with, and a figure for each column."""

    title: str
    along: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, int, Sequence[float]]]

    def markdown(self) -> str:
        """Its table, with the title as the head of the names."""
        rows = [[name, str(place), *(f"{value:.3g}" for value in values)] for name, place, values in self.rows]
        return table([self.title, self.along, *self.columns], rows)


@dataclass
class Outcome:
    """What one benchmark found: how long each side took here, the figures that travel, and how cost grows."""

    title: str
    sides: list[dict[str, str | float]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def time(self, label: str, sides: Sequence[Side], timings: Timings) -> None:
        """Note each side's median time, under a label that says what was done."""
        for side in sides:
            self.sides.append(
                {
                    "work": label,
                    "side": side.name,
                    "role": side.role,
                    "rounds": len(timings.seconds[side.name]),
                    "median_ms": timings.median(side.name) * 1e3,
                }
            )

    def figure(
        self, what: str, ratio: Ratio, goal: float | None = None, better: Literal["lower", "higher"] = "lower"
    ) -> None:
        """Note a ratio with its spread and its goal."""
        self.figures.append(Figure(what, ratio.median, ratio.low, ratio.high, goal=goal, better=better))

    def markdown(self) -> str:
        """Its section of the page, which is also what the terminal shows."""
        parts = [f"## {self.title}"]
        if self.figures:
            parts.append(
                table(["figure", "median", "10 % – 90 %", "goal", "met"], [figure.cells() for figure in self.figures])
            )
        if self.sides:
            rows = [
                [
                    str(side["work"]),
                    str(side["side"]),
                    str(side["role"]),
                    f"{side['median_ms']:.2f}",
                    f"{side['rounds']}",
                ]
                for side in self.sides
            ]
            parts.append(table(["work", "side", "role", "median, ms", "rounds"], rows))
        parts += [each.markdown() for each in self.series]
        return "\n\n".join([*parts, *self.notes]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
