"""Grids of values, such as layer × position."""

from typing import Any

from probekit.report.characters import numbered, one_line, plain, visible
from probekit.report.charts.chart import WHOLE_DATUM, Chart, Data, Table, responsive
from probekit.report.figures import Cell, figure


def heatmap_chart(block: dict[str, Any]) -> Chart:
    """The chart of a `heatmap` block."""
    columns = numbered([visible(label) for label in block["x_labels"]])
    rows = numbered([visible(label) for label in block["y_labels"]])
    x_title, y_title, value_title = one_line(block["x"]), one_line(block["y"]), one_line(block["value"])
    body: list[list[Cell]] = [[row, *entries] for row, entries in zip(rows, block["values"], strict=True)]
    table = Table([f"{y_title} \\ {x_title}", *columns], body, row_headers=True).within()
    cells = [
        (row, column, entry)
        for row, entries in zip(rows, block["values"], strict=True)
        for column, entry in zip(columns, entries, strict=True)
        if entry is not None
    ]
    present = [entry for _, _, entry in cells]
    data = Data(
        ["y", "x", "value"],
        [y_title, x_title, value_title],
        [list(column) for column in zip(*cells, strict=True)] or [[], [], []],
    )
    if not present:
        return Chart(None, block["description"] or "A heatmap without data.", table, data)
    low, high = block["domain"] or (min(present), max(present))
    high = high if high > low else low + 1
    described = f"Heatmap of {value_title} by {y_title} ({len(rows)}) and {x_title} ({len(columns)}); "
    extent = f"from {figure(min(present))} to {figure(max(present))}."
    missing = len(rows) * len(columns) - len(present)
    return Chart(
        spec=_spec(columns, rows, (x_title, y_title, value_title), (low, high)),
        description=plain(block["description"]) or described + extent,
        table=table,
        data=data,
        scale=(value_title, figure(low), figure(high)),
        labels={"x": x_title, "y": y_title, "value": value_title},
        remarks=[f"Cells without a value are left blank: {missing} of {len(rows) * len(columns)}."] if missing else [],
    )


def _spec(
    columns: list[str], rows: list[str], titles: tuple[str, str, str], domain: tuple[float, float]
) -> dict[str, Any]:
    x_title, y_title, value_title = titles
    upright = all(label.isdigit() for label in columns) or len(columns) * max(map(len, columns)) <= 64
    row_height = 26 if len(rows) <= 14 else max(8, 420 // len(rows))
    labels = {"labelOverlap": True, "labelSeparation": 4, "ticks": False, "domain": False}
    return responsive(row_height * len(rows)) | {
        "mark": {"type": "rect", "tooltip": WHOLE_DATUM},
        "encoding": {
            "x": {
                "field": "x",
                "type": "ordinal",
                "title": x_title,
                "scale": {"domain": columns, "padding": 0},
                "axis": labels | {"labelAngle": 0 if upright else -55},
            },
            "y": {
                "field": "y",
                "type": "ordinal",
                "title": y_title,
                "scale": {"domain": rows, "padding": 0},
                "axis": labels | {"labelSeparation": 0},
            },
            "color": {
                "field": "value",
                "type": "quantitative",
                "scale": {"domain": list(domain), "clamp": True, "zero": False},
                "legend": {"title": value_title},
            },
        },
    }
