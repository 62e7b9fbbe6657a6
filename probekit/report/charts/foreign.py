"""Charts that a plugin's author wrote: any Vega-Lite spec, with whatever rows it carries."""

from typing import Any

from probekit.report.characters import plain
from probekit.report.charts.chart import Chart, Data, Table
from probekit.report.figures import Cell, number


def foreign_chart(block: dict[str, Any]) -> Chart:
    """The chart of a `chart` block."""
    spec: dict[str, Any] = _readable(block["spec"])
    encoding = spec.get("encoding")
    faceted = isinstance(encoding, dict) and not encoding.keys().isdisjoint(("row", "column", "facet"))
    if ("mark" in spec or "layer" in spec) and not faceted:
        # A single view can take the page's width; a composition or an author's own width is left as it is.
        spec.setdefault("width", "container")
        if spec["width"] == "container":
            spec.setdefault("autosize", {"type": "fit-x", "contains": "padding"})
    described = spec.get("description")
    description = block["description"] or (described if isinstance(described, str) else "") or block["caption"]
    path, data = _carried(spec)
    table = None
    if data is not None:
        body = [[_cell(value) for value in row] for row in zip(*data.columns, strict=True)]
        table = Table(data.headers, body).within()
    return Chart(spec, plain(description) or "A chart.", table, data, path)


def _readable(part: Any) -> Any:
    """An author's spec with invisible characters shown; names and values alike, so fields still find their data."""
    if isinstance(part, dict):
        return {plain(key): _readable(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_readable(value) for value in part]
    return plain(part) if isinstance(part, str) else part


def _carried(spec: dict[str, Any]) -> tuple[list[str], Data | None]:
    """Where a spec has its rows, in `data.values` or the named data set that it starts from, and these."""
    data = spec.get("data")
    records, path = (data.get("values"), ["data", "values"]) if isinstance(data, dict) else (None, [])
    datasets = spec.get("datasets")
    if records is None and isinstance(datasets, dict) and datasets:
        named = data.get("name") if isinstance(data, dict) else None
        name = named if isinstance(named, str) and named in datasets else next(iter(datasets))
        records, path = datasets[name], ["datasets", name]
    if not isinstance(records, list) or not records:
        return [], None
    tabular = [record if isinstance(record, dict) else {"data": record} for record in records]
    names = list(dict.fromkeys(name for record in tabular for name in record))
    return path, Data(names, names, [[record.get(name) for record in tabular] for name in names])


def _cell(value: object) -> Cell:
    if isinstance(value, str | bool):
        return value
    return str(value) if isinstance(value, dict | list) else number(value)
