"""What a page needs to draw one chart and to hand out its data."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from probekit.report.characters import numbered
from probekit.report.figures import Cell

# Of the table below a chart.
MOST_CELLS = 2_000
# Digits of the figures that a page draws and saves: what float32 holds.
DIGITS = 7
WHOLE_DATUM = {"content": "data"}


@dataclass(frozen=True)
class Table:
    """Data as a reader's table; `thinned` says so where there were too many rows to print them all."""

    columns: list[str]
    rows: list[list[Cell]]
    thinned: str = ""
    row_headers: bool = False

    def within(self, most_cells: int = MOST_CELLS) -> "Table":
        """The table, or evenly spaced rows of it where it has more cells than that."""
        stride = -(-len(self.rows) * len(self.columns) // most_cells)
        if stride <= 1:
            return self
        kept = self.rows[::stride]
        remark = f"{len(kept)} of {len(self.rows)} rows, evenly spaced."
        return Table(self.columns, kept, remark, self.row_headers)


@dataclass(frozen=True)
class Data:
    """The figures of a chart in columns: `fields` are their names in its spec, `headers` the reader's words."""

    fields: list[str]
    headers: list[str]
    columns: list[list[Any]]

    @classmethod
    def of_table(cls, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Data":
        """A table's rows as columns; names may repeat, and fields do not."""
        columns = [[row[index] for row in rows] for index in range(len(names))]
        return cls(numbered(list(names)), list(names), columns)

    def records(self) -> list[dict[str, Any]]:
        """One object for each row, as Vega-Lite takes them."""
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*self.columns, strict=True)]

    def csv(self) -> str:
        """Comma-separated values with a line of headers; what is absent is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(numbered(self.headers))
        for row in zip(*self.columns, strict=True):
            writer.writerow([json.dumps(cell) if isinstance(cell, dict | list) else cell for cell in row])
        return text.getvalue()

    def thinned(self, stride: int) -> "Data":
        """About one of `stride` rows, with every peak: of each stretch of a series (the rows that have their first cell
        in common) the rows with the least and the greatest figure, a gap if there is one, and the series' ends.
        """
        if stride <= 1:
            return self
        names, kept, begin = self.columns[0], list[int](), 0
        for end in range(1, len(names) + 1):
            if end < len(names) and names[end] == names[begin]:
                continue
            for start in range(begin, end, 2 * stride):
                kept += self._telling(range(start, min(start + 2 * stride, end)))
            kept += [begin, end - 1]
            begin = end
        rows = sorted(set(kept))
        return Data(self.fields, self.headers, [[column[row] for row in rows] for column in self.columns])

    def _telling(self, stretch: range) -> list[int]:
        """The rows of a stretch without which it would look different."""
        figures = self.columns[2:]
        whole, gaps = list[int](), list[int]()
        for row in stretch:
            (gaps if any(column[row] is None for column in figures) else whole).append(row)
        if not whole:
            return gaps[:1]
        least = min(whole, key=lambda row: min(column[row] for column in figures))
        greatest = max(whole, key=lambda row: max(column[row] for column in figures))
        return [least, greatest, *gaps[:1]]

    def embedded(self) -> dict[str, Any]:
        """The data as a page carries them: figures with `DIGITS` digits, and a column of texts as its distinct ones
        (`levels`) with their places among them, since a series' name repeats at each of its points.
        """
        columns, levels = [], {}
        for name, column in zip(self.fields, self.columns, strict=True):
            if column and all(isinstance(cell, str) for cell in column):
                places = {text: place for place, text in enumerate(dict.fromkeys(column))}
                levels[name] = list(places)
                columns.append([places[text] for text in column])
            else:
                columns.append([_rounded(cell) for cell in column])
        return {"fields": self.fields, "headers": numbered(self.headers), "columns": columns, "levels": levels}


@dataclass(frozen=True)
class KeyEntry:
    """One series in the key beside a chart: its name, the stylesheet's name of its colour, and its dash pattern."""

    name: str
    colour: str
    dash: int


@dataclass(frozen=True)
class Chart:
    """What the page needs to draw one chart; `spec` is None where there is nothing to draw.

    `spec` has legends, but no `data` where those stand in `data`; a spec of somebody else's carries its own, and
    `path` leads to its rows. `labels` are the fields of a tooltip in order, with the reader's words for them: given to
    Vega-Lite they would become part of an expression, so specs show the whole datum, and the page's script picks and
    names. A page has about one of `stride` points.
    """

    spec: dict[str, Any] | None
    description: str
    table: Table | None
    data: Data | None = None
    path: Sequence[str] = ()
    key: list[KeyEntry] = field(default_factory=list)
    scale: tuple[str, str, str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    stride: int = 1

    @property
    def whole_spec(self) -> dict[str, Any] | None:
        """The spec as a figure: with all of its data, and without the layer that only answers a pointer."""
        if self.spec is None or self.data is None or self.path:
            return self.spec
        whole = self.spec | {"data": {"values": self.data.records()}}
        if "layer" in whole:
            whole["layer"] = [layer for layer in whole["layer"] if "params" not in layer]
        return whole


def responsive(height: int) -> dict[str, Any]:
    """A single view as wide as the page lets it be."""
    return {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}


def _rounded(cell: Any) -> Any:
    return float(f"{cell:.{DIGITS}g}") if isinstance(cell, float) else cell
