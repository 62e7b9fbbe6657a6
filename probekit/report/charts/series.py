"""Lines, and lines with bands, of one or several series."""

from collections.abc import Sequence
from typing import Any

from probekit.report.characters import numbered, one_line, plain, visible
from probekit.report.charts.chart import WHOLE_DATUM, Chart, Data, KeyEntry, Table, responsive
from probekit.report.figures import Cell, figure

CATEGORIES = 8
LEVELS = 16
# Of all series together; a page draws more of them too slowly, and no screen has as many columns.
MOST_POINTS = 5_000
_MOST_MARKED_POINTS = 24
_MOST_IN_A_COLUMN = 14
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])


def series_chart(block: dict[str, Any]) -> Chart:
    """The chart of a `lines` or a `band` block."""
    has_band = block["type"] == "band"
    names = numbered([visible(series["name"]) for series in block["series"]])
    x_title, y_title = one_line(block["x"]), one_line(block["y"])
    fields = ["y", "low", "high"] if has_band else ["y"]
    points = [
        (name, _place(point[0]), *point[1:])
        for name, series in zip(names, block["series"], strict=True)
        for point in series["points"]
        if point[0] is not None
    ]
    data = Data(
        ["series", "x", *fields],
        ["series", x_title, *(["median", "low", "high"] if has_band else [y_title])],
        [list(column) for column in zip(*points, strict=True)] or [[] for _ in range(2 + len(fields))],
    )
    heights = [height for column in data.columns[2:] for height in column if height is not None]
    table = _table(block, names).within()
    if not heights:
        return Chart(None, block["description"] or "A chart without data.", table, data)
    log_y = block["log_y"] and any(height > 0 for height in heights)
    stride = -(-len(points) // MOST_POINTS)
    remarks = _log_remarks(block["log_y"], heights)
    if stride > 1:
        remarks.append(
            f"This page has one of {stride} points of each line, of {len(points):,} in all: of every stretch the "
            "least, the greatest and a gap, and the ends."
        )
    several = len(names) > 1 or names[0] != y_title
    key = [KeyEntry(name, _colour(index, len(names)), index % len(_DASHES)) for index, name in enumerate(names)]
    kind = "Line chart with bands" if has_band else "Line chart"
    extent = f"{figure(min(heights))} to {figure(max(heights))}"
    listed = ", ".join(names[:CATEGORIES]) + (f" and {len(names) - CATEGORIES} more" if len(names) > CATEGORIES else "")
    labels = {"series": "series", "x": x_title, "y": f"{y_title}, median" if has_band else y_title}
    labels |= {"low": "low", "high": "high"} if has_band else {}
    return Chart(
        spec=_spec(data, names, x_title, y_title, log_y, several),
        description=plain(block["description"]) or f"{kind} of {y_title} by {x_title} for {listed}; from {extent}.",
        table=table,
        data=data,
        key=key if several else [],
        labels=labels,
        remarks=remarks,
        stride=stride,
    )


def _spec(data: Data, names: list[str], x_title: str, y_title: str, log_y: bool, several: bool) -> dict[str, Any]:
    places = data.columns[1]
    marked = len(places) <= _MOST_MARKED_POINTS * len(names)
    hover = {"name": "hover", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
    y_axis = {
        "field": "y",
        "type": "quantitative",
        "title": y_title,
        "scale": {"type": "log"} if log_y else {"zero": False},
    }
    legend = {"title": None, "columns": -(-len(names) // _MOST_IN_A_COLUMN)} if several else None
    shared: dict[str, Any] = {"field": "series", "type": "nominal", "legend": legend}
    patterns = [_DASHES[index % len(_DASHES)] for index in range(len(names))]
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "point": {"size": 28} if marked else False},
            "encoding": {"strokeDash": shared | {"scale": {"domain": names, "range": patterns}}},
        },
        {
            "params": [hover],
            "mark": {"type": "point", "filled": True, "size": 70, "tooltip": WHOLE_DATUM},
            "encoding": {
                "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0},
            },
        },
    ]
    if "low" in data.fields:
        edges = {"y": y_axis | {"field": "low"}, "y2": {"field": "high"}}
        layers.insert(0, {"mark": {"type": "area", "opacity": 0.22, "line": False}, "encoding": edges})
    # Zero and what is below it have no place on a logarithmic axis: a gap, and not a line past it.
    gaps = [{"calculate": f"datum.{name} > 0 ? datum.{name} : null", "as": name} for name in data.fields[2:]]
    return responsive(260) | {
        **({"transform": gaps} if log_y else {}),
        "encoding": {
            "x": {"field": "x", "title": x_title} | _x_axis(places),
            "y": y_axis,
            "color": shared | {"scale": {"domain": names}},
        },
        "layer": layers,
    }


def _x_axis(places: Sequence[Any]) -> dict[str, Any]:
    """Numbers on a continuous axis; texts side by side, in the order in which they first appear."""
    if any(isinstance(place, str) for place in places):
        domain = list(dict.fromkeys(map(str, places)))
        long = len(domain) * max(map(len, domain)) > 72
        labels = {"labelAngle": -55 if long else 0, "labelOverlap": True, "labelSeparation": 4, "grid": False}
        return {"type": "ordinal", "scale": {"domain": domain}, "axis": labels}
    whole = all(isinstance(place, int) or place.is_integer() for place in places)
    axis = {"grid": False, "labelFlush": True, "tickCount": {"signal": "max(2, ceil(width / 90))"}}
    return {
        "type": "quantitative",
        "scale": {"zero": False, "nice": False},
        "axis": axis | ({"tickMinStep": 1} if whole else {}),
    }


def _table(block: dict[str, Any], names: list[str]) -> Table:
    x_title = one_line(block["x"])
    all_points = [[[_place(point[0]), *point[1:]] for point in series["points"]] for series in block["series"]]
    if block["type"] == "band":
        rows = [[name, *point] for name, points in zip(names, all_points, strict=True) for point in points]
        return Table(["series", x_title, "median", "low", "high"], rows)
    positions = [[point[0] for point in points] for points in all_points]
    if positions and all(places == positions[0] for places in positions):
        together: list[list[Cell]] = [
            [place, *(points[index][1] for points in all_points)] for index, place in enumerate(positions[0])
        ]
        return Table([x_title, *names], together)
    rows = [[name, *point] for name, points in zip(names, all_points, strict=True) for point in points]
    return Table(["series", x_title, plain(block["y"])], rows)


def _place(place: Any) -> Any:
    return visible(place) if isinstance(place, str) else place


def _log_remarks(log_y: bool, heights: Sequence[float]) -> list[str]:
    beyond = sum(height <= 0 for height in heights)
    if not log_y or not beyond:
        return []
    if beyond == len(heights):
        return ["No figure is above zero, so the axis is linear and not logarithmic."]
    return [f"{beyond} of {len(heights)} figures are zero or below and have no place on a logarithmic axis."]


def _colour(index: int, count: int) -> str:
    """A categorical colour, or past eight series a step of the sequential scale, which keeps their order visible."""
    if count <= CATEGORIES:
        return f"category-{index}"
    return f"level-{3 + round((LEVELS - 4) * index / (count - 1))}"
