"""What a benchmark found, as plain data, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.measure import Ratio, Role, Side, Timings

# What stands beside a median: its spread, and what was to be reached.
SPREAD = ("10 % – 90 %", "goal", "met")


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
        return [self.what, f"{_shown(self.value)} {self.unit}", spread, goal, _answer(self.met)]


@dataclass(frozen=True)
class Row:
    """One side of a comparison: how long it took, and against the floor; or why it was left out.

    `result` says how near to the floor's its result was before it was timed.
    """

    side: str
    role: Role
    result: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    median_ms: float | None = None
    rounds: int | None = None
    goal: float | None = None
    left_out: str = ""
    failed: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it reaches its goal; None without one, and without a figure."""
        return None if self.goal is None or self.value is None else self.value <= self.goal

    def cells(self) -> list[str]:
        """Its row of the table."""
        result = self.left_out or self.result
        if self.value is None or self.low is None or self.high is None or self.median_ms is None:
            return [self.side, self.role, "", "", "", "", "", "", result]
        floor = self.role == "floor"
        ratio = "1" if floor else f"{_shown(self.value)} ×"
        spread = "" if floor else f"{_shown(self.low)} – {_shown(self.high)}"
        goal = "" if self.goal is None else f"≤ {self.goal:g}"
        times = [f"{self.median_ms:.2f}", str(self.rounds)]
        return [self.side, self.role, ratio, spread, goal, _answer(self.met), *times, result]


@dataclass(frozen=True)
class Comparison:
    """The same work by every side: ratios to the floor, with their spread, and times on this machine."""

    work: str
    floor: str
    rows: Sequence[Row]

    def head(self) -> list[str]:
        """The heads of its table."""
        return ["side", "role", f"/ {self.floor}", *SPREAD, "median, ms", "rounds", "result"]

    def markdown(self) -> str:
        """Its table, with the work as the head of the sides."""
        return table([self.work, *self.head()[1:]], [row.cells() for row in self.rows])


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
    """What one benchmark found: how long each side took here, the figures that travel, and how cost grows.

    `failures` are sentences on what did not work; with one of them the whole run ends with status 1.
    """

    title: str
    comparisons: list[Comparison] = field(default_factory=list)
    sides: list[dict[str, str | float]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

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
        parts = [f"## {self.title}", *(f"**Failed**: {failure}" for failure in self.failures)]
        parts += [each.markdown() for each in self.comparisons]
        if self.figures:
            parts.append(table(["figure", "median", *SPREAD], [figure.cells() for figure in self.figures]))
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


def _answer(met: bool | None) -> str:
    return {None: "", True: "yes", False: "**no**"}[met]


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
