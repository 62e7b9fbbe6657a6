"""Blocks of figures as Vega-Lite specs, each with its key, its description and its data as a table.

Specs carry no colours: the page's script gives Vega the colours of the reader's light or dark theme, by the names of
the stylesheet's variables. The key beside a chart is HTML, so it wraps on a narrow screen and can be read aloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from probekit.report.characters import numbered, one_line, plain, visible
from probekit.report.figures import Cell, figure, number

CATEGORIES = 8
LEVELS = 16
MOST_CELLS = 20_000
_MOST_MARKED_POINTS = 24
_WHOLE_DATUM = {"content": "data"}
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])


@dataclass(frozen=True)
class Table:
    """Data as a reader's table; `thinned` says so where there were too many rows to print them all."""

    columns: list[str]
    rows: list[list[Cell]]
    thinned: str = ""
    row_headers: bool = False


@dataclass(frozen=True)
class KeyEntry:
    """One series in the key beside a chart: its name, the stylesheet's name of its colour, and its dash pattern."""

    name: str
    colour: str
    dash: int


@dataclass(frozen=True)
class Chart:
    """What the page needs to draw one chart; `spec` is None where there is nothing to draw.

    `labels` are the fields of a tooltip in order, with the reader's words for them. Given to Vega-Lite they would
    become part of an expression; so the specs here show the whole datum, and the page's script picks and names.
    """

    spec: dict[str, Any] | None
    description: str
    table: Table | None
    key: list[KeyEntry] = field(default_factory=list)
    scale: tuple[str, str, str] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def chart_of(block: dict[str, Any]) -> Chart:
    """The chart of a `lines`, `band`, `heatmap` or `chart` block."""
    kinds = {"lines": _series_chart, "band": _series_chart, "heatmap": _heatmap_chart, "chart": _foreign_chart}
    return kinds[block["type"]](block)


def _series_chart(block: dict[str, Any]) -> Chart:
    has_band = block["type"] == "band"
    names = numbered([visible(series["name"]) for series in block["series"]])
    x_title, y_title = one_line(block["x"]), one_line(block["y"])
    points = [
        (name, point)
        for name, series in zip(names, block["series"], strict=True)
        for point in series["points"]
        if point[0] is not None
    ]
    heights = [height for _, point in points for height in point[1:] if height is not None]
    table = _series_table(block, names)
    if not heights:
        return Chart(None, block["description"] or "A chart without data.", table)
    log_y = block["log_y"] and any(height > 0 for height in heights)
    remarks = _log_remarks(block["log_y"], heights)
    fields = ("y", "low", "high")[: 3 if has_band else 1]
    values = [
        {"x": point[0], "series": name}
        | {key: None if log_y and (height or 0) <= 0 else height for key, height in zip(fields, point[1:], strict=True)}
        for name, point in points
    ]
    spec = _series_spec(values, names, x_title, y_title, log_y, has_band)
    several = len(names) > 1 or names[0] != y_title
    key = [KeyEntry(name, _colour(index, len(names)), index % len(_DASHES)) for index, name in enumerate(names)]
    kind = "Line chart with bands" if has_band else "Line chart"
    extent = f"{figure(min(heights))} to {figure(max(heights))}"
    listed = ", ".join(names[:CATEGORIES]) + (f" and {len(names) - CATEGORIES} more" if len(names) > CATEGORIES else "")
    description = plain(block["description"]) or f"{kind} of {y_title} by {x_title} for {listed}; from {extent}."
    labels = {"series": "series", "x": x_title, "y": f"{y_title}, median" if has_band else y_title}
    labels |= {"low": "low", "high": "high"} if has_band else {}
    return Chart(spec, description, table, key if several else [], labels=labels, remarks=remarks)


def _series_spec(
    values: list[dict[str, Any]], names: list[str], x_title: str, y_title: str, log_y: bool, has_band: bool
) -> dict[str, Any]:
    whole = all(isinstance(value["x"], int) or value["x"].is_integer() for value in values)
    marked = len(values) <= _MOST_MARKED_POINTS * len(names)
    y_scale: dict[str, Any] = {"type": "log"} if log_y else {"zero": False}
    hover = {"name": "hover", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
    y_axis = {"field": "y", "type": "quantitative", "title": y_title, "scale": y_scale}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "point": {"size": 28} if marked else False},
            "encoding": {"strokeDash": _dash_encoding(names)},
        },
        {
            "params": [hover],
            "mark": {"type": "point", "filled": True, "size": 70, "tooltip": _WHOLE_DATUM},
            "encoding": {
                "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
            },
        },
    ]
    if has_band:
        edges = {"y": y_axis | {"field": "low"}, "y2": {"field": "high"}}
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.22, "line": False}, "encoding": edges})
    x_axis: dict[str, Any] = {"grid": False, "labelFlush": True, "tickCount": {"signal": "max(2, ceil(width / 90))"}}
    return _responsive(260) | {
        "data": {"values": values},
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": x_title,
                "scale": {"zero": False, "nice": False},
                "axis": x_axis | ({"tickMinStep": 1} if whole else {}),
            },
            "y": y_axis,
            "color": {"field": "series", "type": "nominal", "scale": {"domain": names}, "legend": None},
        },
        "layer": layers,
    }


def _heatmap_chart(block: dict[str, Any]) -> Chart:
    columns = numbered([visible(label) for label in block["x_labels"]])
    rows = numbered([visible(label) for label in block["y_labels"]])
    x_title, y_title, value_title = one_line(block["x"]), one_line(block["y"]), one_line(block["value"])
    corner = f"{y_title} \\ {x_title}"
    body: list[list[Cell]] = [[row, *entries] for row, entries in zip(rows, block["values"], strict=True)]
    table = _thinned(Table([corner, *columns], body, row_headers=True))
    present = [entry for entries in block["values"] for entry in entries if entry is not None]
    if not present:
        return Chart(None, block["description"] or "A heatmap without data.", table)
    low, high = block["domain"] or (min(present), max(present))
    values = [
        {"x": column, "y": row, "value": entry}
        for row, entries in zip(rows, block["values"], strict=True)
        for column, entry in zip(columns, entries, strict=True)
        if entry is not None
    ]
    upright = all(label.isdigit() for label in columns) or len(columns) * max(map(len, columns)) <= 64
    row_height = 26 if len(rows) <= 14 else max(8, 420 // len(rows))
    spec = _responsive(row_height * len(rows)) | {
        "data": {"values": values},
        "mark": {"type": "rect", "tooltip": _WHOLE_DATUM},
        "encoding": {
            "x": {
                "field": "x",
                "type": "ordinal",
                "title": x_title,
                "scale": {"domain": columns, "padding": 0},
                "axis": {"labelAngle": 0 if upright else -55, "labelOverlap": True, "ticks": False, "domain": False},
            },
            "y": {
                "field": "y",
                "type": "ordinal",
                "title": y_title,
                "scale": {"domain": rows, "padding": 0},
                "axis": {"labelOverlap": True, "ticks": False, "domain": False},
            },
            "color": {
                "field": "value",
                "type": "quantitative",
                "scale": {"domain": [low, high if high > low else low + 1], "clamp": True, "zero": False},
                "legend": None,
            },
        },
    }
    described = f"Heatmap of {value_title} by {y_title} ({len(rows)}) and {x_title} ({len(columns)}); "
    extent = f"from {figure(min(present))} to {figure(max(present))}."
    missing = len(rows) * len(columns) - len(present)
    remarks = [f"Cells without a value are left blank: {missing} of {len(rows) * len(columns)}."] if missing else []
    scale = (value_title, figure(low), figure(high))
    labels = {"x": x_title, "y": y_title, "value": value_title}
    description = plain(block["description"]) or described + extent
    return Chart(spec, description, table, scale=scale, labels=labels, remarks=remarks)


def _foreign_chart(block: dict[str, Any]) -> Chart:
    spec: dict[str, Any] = _readable(block["spec"])
    if "mark" in spec or "layer" in spec:
        # A single view can take the page's width; a composition or an author's own width is left as it is.
        spec.setdefault("width", "container")
        if spec["width"] == "container":
            spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    described = spec.get("description")
    description = block["description"] or (described if isinstance(described, str) else "") or block["caption"]
    return Chart(spec, plain(description) or "A chart.", _foreign_table(spec))


def _readable(part: Any) -> Any:
    """An author's spec with invisible characters shown; names and values alike, so fields still find their data."""
    if isinstance(part, dict):
        return {plain(key): _readable(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_readable(value) for value in part]
    return plain(part) if isinstance(part, str) else part


def _foreign_table(spec: dict[str, Any]) -> Table | None:
    """The rows that a spec carries, from `data.values` or the named data set that it starts from."""
    data = spec.get("data")
    records = data.get("values") if isinstance(data, dict) else None
    datasets = spec.get("datasets")
    if records is None and isinstance(datasets, dict) and datasets:
        name = data.get("name") if isinstance(data, dict) else None
        records = datasets.get(name, next(iter(datasets.values())))
    if not isinstance(records, list) or not records:
        return None
    tabular = [record if isinstance(record, dict) else {"data": record} for record in records]
    columns = list(dict.fromkeys(name for record in tabular for name in record))
    rows = [[_foreign_cell(record.get(name)) for name in columns] for record in tabular]
    return _thinned(Table(columns, rows))


def _foreign_cell(value: object) -> Cell:
    if isinstance(value, str | bool):
        return value
    return str(value) if isinstance(value, dict | list) else number(value)


def _series_table(block: dict[str, Any], names: list[str]) -> Table:
    x_title = one_line(block["x"])
    all_points = [series["points"] for series in block["series"]]
    if block["type"] == "band":
        rows = [[name, *point] for name, points in zip(names, all_points, strict=True) for point in points]
        return _thinned(Table(["series", x_title, "median", "low", "high"], rows))
    positions = [[point[0] for point in points] for points in all_points]
    if positions and all(places == positions[0] for places in positions):
        together: list[list[Cell]] = [
            [place, *(points[index][1] for points in all_points)] for index, place in enumerate(positions[0])
        ]
        return _thinned(Table([x_title, *names], together))
    rows = [[name, *point] for name, points in zip(names, all_points, strict=True) for point in points]
    return _thinned(Table(["series", x_title, plain(block["y"])], rows))


def _thinned(table: Table) -> Table:
    stride = -(-len(table.rows) * len(table.columns) // MOST_CELLS)
    if stride <= 1:
        return table
    kept = table.rows[::stride]
    remark = f"{len(kept)} of {len(table.rows)} rows, evenly spaced; the saved page.json has all of them."
    return Table(table.columns, kept, remark, table.row_headers)


def _log_remarks(log_y: bool, heights: Sequence[float]) -> list[str]:
    beyond = sum(height <= 0 for height in heights)
    if not log_y or not beyond:
        return []
    if beyond == len(heights):
        return ["No figure is above zero, so the axis is linear and not logarithmic."]
    return [f"{beyond} of {len(heights)} figures are zero or below and have no place on a logarithmic axis."]


def _dash_encoding(names: list[str]) -> dict[str, Any]:
    patterns = [_DASHES[index % len(_DASHES)] for index in range(len(names))]
    return {"field": "series", "type": "nominal", "scale": {"domain": names, "range": patterns}, "legend": None}


def _colour(index: int, count: int) -> str:
    """A categorical colour, or past eight series a step of the sequential scale, which keeps their order visible."""
    if count <= CATEGORIES:
        return f"category-{index}"
    return f"level-{3 + round((LEVELS - 4) * index / (count - 1))}"


def _responsive(height: int) -> dict[str, Any]:
    return {"width": "container", "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
