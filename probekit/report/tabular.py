"""Frames, series and indexes of pandas as tables, and the cells of any table by others as JSON has them."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from probekit.report.characters import without_surrogates
from probekit.report.figures import Cell, number

# What a table of a page can hold and still be read; of more, some rows and columns are shown.
MOST_CELLS = 10_000
MOST_COLUMNS = 200
# Of a cell that is no text: a list, an array, somebody's object.
MOST_CHARACTERS = 1_000
_MIDNIGHT = re.compile(r"-?\d{4,}-\d\d-\d\d 00:00:00")


def instance_of(shown: object, module: str, *names: str) -> bool:
    """Whether it is an instance of one of the classes of a module that is perhaps not even imported."""
    imported = sys.modules.get(module)
    classes = tuple(kind for name in names if isinstance(kind := getattr(imported, name, None), type))
    return isinstance(shown, classes)


def is_tabular(shown: object) -> bool:
    """Whether it is a DataFrame, Series, Index or Styler of pandas."""
    styled = instance_of(shown, "pandas.io.formats.style", "Styler")
    return styled or instance_of(shown, "pandas", "DataFrame", "Series", "Index")


def table_of(shown: Any) -> dict[str, Any]:
    """A frame, series or index as a table; its index leads, unless that only counts the rows."""
    remark = ""
    if instance_of(shown, "pandas.io.formats.style", "Styler"):
        shown, remark = shown.data, "The data themselves, without the Styler's formats and colours."
    if instance_of(shown, "pandas", "Index"):
        leading, names, series = _levels(shown), [], []
        kept_columns, kept_rows, thinned = _kept(len(leading), len(shown))
    else:
        frame = (
            shown.to_frame("value" if shown.name is None else shown.name)
            if instance_of(shown, "pandas", "Series")
            else shown
        )
        kept_columns, kept_rows, thinned = _kept(len(frame.columns), len(frame))
        # Rows that are left out leave a gap in the count, so there it is shown.
        shows_index = kept_rows.step > 1 or not len(frame.columns) or not _only_counts(frame.index)
        leading = _levels(frame.index, frame.columns.names) if shows_index else []
        names = [_name(frame.columns[index]) for index in kept_columns]
        series = [frame.iloc[:, index] for index in kept_columns]
    rows = slice(kept_rows.start, kept_rows.stop, kept_rows.step)
    by_column = [_cells(values[rows].tolist()) for _, values in leading]
    by_column += [_cells(values.iloc[rows].tolist()) for values in series]
    return {
        "columns": [*(name for name, _ in leading), *names],
        "rows": _transposed(by_column, len(kept_rows)),
        "remark": " ".join(filter(None, (remark, thinned))),
    }


def _only_counts(index: Any) -> bool:
    return instance_of(index, "pandas", "RangeIndex") and index.start == 0 and index.step == 1 and index.name is None


def _levels(index: Any, across: Sequence[object] = ()) -> list[tuple[str, Any]]:
    """The levels of an index with their names; the last one's also says what the columns are, as a heatmap's corner."""
    unnamed = "index" if index.nlevels == 1 else "level {}"
    levels = [
        (unnamed.format(level) if name is None else _name(name), index.get_level_values(level))
        for level, name in enumerate(index.names)
    ]
    over = " / ".join(_name(name) for name in across if name is not None)
    if over:
        name = levels[-1][0] if index.names[-1] is not None else ""
        levels[-1] = (f"{name} \\ {over}".strip(), levels[-1][1])
    return levels


def table_content(columns: Sequence[object], rows: Sequence[Sequence[object]]) -> dict[str, Any]:
    """Columns and rows as a table's content: names and cells as JSON has them, thinned, and a remark if they are."""
    kept_columns, kept_rows, remark = _kept(len(columns), len(rows))
    names = [_name(columns[index]) for index in kept_columns]
    by_column = [_cells([rows[row][index] for row in kept_rows]) for index in kept_columns]
    return {"columns": names, "rows": _transposed(by_column, len(kept_rows)), "remark": remark}


def _kept(columns: int, rows: int) -> tuple[list[int], range, str]:
    """The columns and rows of a table that a page shows: the outer columns, and rows evenly spaced; and a remark."""
    kept_columns = list(range(columns))
    if columns > MOST_COLUMNS:
        kept_columns = [*kept_columns[: MOST_COLUMNS // 2], *kept_columns[-(MOST_COLUMNS // 2) :]]
    stride = max(1, -(-rows * len(kept_columns) // MOST_CELLS))
    kept_rows = range(0, rows, stride)
    said = [f"{len(kept_rows)} of {rows} rows, evenly spaced"] if stride > 1 else []
    said += [f"{MOST_COLUMNS} of {columns} columns, the first and the last"] if columns > MOST_COLUMNS else []
    return kept_columns, kept_rows, f"{'; '.join(said)}; the page holds no more of them." if said else ""


def _name(label: object) -> str:
    parts = label if isinstance(label, tuple) else (label,)
    return without_surrogates(" / ".join(text for part in parts if (text := _spelled(part))))


def _cells(values: Sequence[object]) -> list[Cell]:
    cells = [_cell(value) for value in values]
    present = [cell for cell in cells if cell is not None]
    if present and all(isinstance(cell, str) and _MIDNIGHT.fullmatch(cell) for cell in present):
        # A column of days, each of them spelled as its midnight.
        return [cell.removesuffix(" 00:00:00") if isinstance(cell, str) else cell for cell in cells]
    return cells


def _cell(value: Any) -> Cell:
    """One value as JSON has it: text, a figure, a truth value; None for what pandas calls missing."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return without_surrogates(str(value))
    pandas = sys.modules.get("pandas")
    if pandas is not None and (value is pandas.NaT or value is pandas.NA):
        return None
    if isinstance(value, int | float):
        return number(value)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in tuple("biuf") and getattr(value, "ndim", None) == 0:
        return bool(value) if kind == "b" else number(int(value) if kind in "iu" else float(value))
    text = _spelled(value)
    if text == "NaT":
        return None
    if kind == "M":  # numpy's spelling of a time is not that of pandas and Python
        text = text.replace("T", " ")
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"


def _spelled(value: object) -> str:
    try:
        text = repr(value) if isinstance(value, bytes) else str(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return without_surrogates(text[1:-1] if isinstance(value, complex) and text.startswith("(") else text)


def _transposed(by_column: list[list[Cell]], rows: int) -> list[list[Cell]]:
    return [[column[index] for column in by_column] for index in range(rows)]
