"""What the pages of the autoencoder share: figures with their spread over seeds, and a chart of a figure by size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit_plugins.autoencoder import SPARSE

if TYPE_CHECKING:
    from probekit import Page, Result

Row = Mapping[str, Any]
# Sites that have charts of their own, and lines of one chart, at most.
SITES, LINES = 3, 8
# Characters of a token in a cell or a key.
LONGEST = 24
# Points of a reference line, such as PCA's.
POINTS = 20
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
DATUM = {"content": "data"}


def settings_with(result: Result, *names: str) -> list[Row]:
    """The settings that have at least one of these figures."""
    return [row for row in result.tables.get("settings", []) if any(row.get(name) is not None for name in names)]


def sites_of(rows: Iterable[Row]) -> list[str]:
    """The sites of these rows, in their order."""
    return list(dict.fromkeys(str(row["site"]) for row in rows))


def charted(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of some sites, evenly spread, where there are more than have a chart; and how a caption names each."""
    sites = sites_of(rows)
    return [
        (f" at {site}" if len(sites) > 1 else "", [row for row in rows if row["site"] == site])
        for site in some(sites, SITES)
    ]


def some(every: Sequence[str], most: int) -> list[str]:
    """Evenly spread ones where there are more than `most`, with the first and the last."""
    last = len(every) - 1
    return list(every) if last < most else [every[round(index * last / (most - 1))] for index in range(most)]


def spread(row: Row, name: str, digits: str = ".3f") -> str | float | None:
    """A figure's median over seeds with the least and the greatest; the figure alone where all show the same."""
    middle = number(row.get(name))
    least, greatest = number(row.get(f"{name}_least")), number(row.get(f"{name}_greatest"))
    if middle is None or least is None or greatest is None:
        return middle
    median, low, high = (f"{value:{digits}}" for value in (middle, least, greatest))
    between = " to " if least < 0 else "–"  # no dash before a minus sign
    return float(median) if low == high else f"{median} ({low}{between}{high})".replace("-", "−")


def over_seeds(rows: Iterable[Row]) -> str:
    """What a caption says of figures with a spread; nothing where there is one seed."""
    return ": median over seeds (least to greatest)" if any((row.get("seeds") or 1) > 1 for row in rows) else ""


def rounded(value: object) -> float | None:
    """A share with as many digits as the medians beside it."""
    found = number(value)
    return None if found is None else round(found, 3)


def number(value: object) -> float | None:
    """A figure, or None for what is none."""
    return float(value) if isinstance(value, int | float) else None


def short(text: str) -> str:
    """A text for a cell or a key; a few tokens are of hundreds of characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def range_of(row: Row, name: str) -> tuple[float, float, float] | None:
    """A figure's median, least and greatest over seeds."""
    middle = number(row.get(name))
    if middle is None:
        return None
    ends = [number(row.get(f"{name}_{end}")) for end in ("least", "greatest")]
    least, greatest = (middle if end is None else end for end in ends)
    return middle, least, greatest


def is_sparse(row: Row) -> bool:
    """Whether codes have few entries that are not zero; of a saved autoencoder, its figures say it."""
    return row.get("variant") in SPARSE or row.get("l0") is not None


def size_of(row: Row) -> tuple[float, float, float] | None:
    """How many numbers hold a code: the width of a dense one, the mean number of active features L0 of a sparse one."""
    return range_of(row, "l0" if is_sparse(row) else "code")


def line_of(row: Row) -> str:
    """The line of a chart by size that a setting belongs to: its variant; a saved autoencoder is alone."""
    return str(row["setting"] if row.get("variant") == "saved" else row["variant"])


def named(row: Row, several: bool, name: str = "setting") -> str:
    """A setting, with its site where there are several."""
    return f"{row[name]} at {row['site']}" if several else str(row[name])


def settings_table(
    page: Page, rows: Sequence[Row], columns: Mapping[str, Sequence[object]], caption: str, remark: str = ""
) -> None:
    """A row for each setting: its name, with the site where there are several, and those columns that hold anything."""
    shown = {title: alike(values) for title, values in columns.items() if any(value is not None for value in values)}
    several = len(sites_of(rows)) > 1
    page.table(
        ["setting", *shown],
        [[named(row, several), *(values[index] for values in shown.values())] for index, row in enumerate(rows)],
        caption=caption,
        in_summary=True,
        interactive=len(rows) > 10,
        remark=remark,
    )


def alike(values: Sequence[object]) -> list[object]:
    """A column of shares: one without a spread has as many digits as those with one, by which a table is sorted."""
    texts = [value.partition(" ")[0] for value in values if isinstance(value, str)]
    if not texts or any(len(text.partition(".")[2]) != 3 for text in texts):
        return list(values)
    return [f"{value:.3f}".replace("-", "−") if isinstance(value, float) else value for value in values]


def points(rows: Sequence[Row], name: str) -> list[dict[str, Any]]:
    """A point for each setting that has this figure and a size above 0, for `by_size`."""
    found = []
    for row in rows:
        x, y = size_of(row), range_of(row, name)
        if x is not None and y is not None and x[1] > 0:
            found.append(_point(line_of(row), str(row["setting"]), x, y))
    return found


def reference(name: str, pairs: Iterable[tuple[float, float]]) -> list[dict[str, Any]]:
    """Points of a line to compare with, `(size, figure)`, for `by_size`."""
    return [_point(name, name, (x, x, x), (y, y, y)) for x, y in pairs]


def by_size(found: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[str, Any]:
    """A Vega-Lite chart of a figure against the size of a code, on a logarithmic axis: a line for each variant.

    Thin lines through a point go from the least to the greatest over seeds, in both directions.
    """
    lines = list(dict.fromkeys(str(point["line"]) for point in found))
    low, high = min(point["size, least"] for point in found), max(point["size, greatest"] for point in found)
    across = {
        "type": "quantitative",
        "title": x,
        "scale": {"type": "log", "domain": [0.85 * low, 1.18 * high], "nice": False},
        "axis": {"grid": False, "format": "~g", "values": _ticks(low, high), "labelOverlap": True},
    }
    up = {"type": "quantitative", "title": y, "scale": {"zero": False}}
    legend = {"title": None, "orient": "top", "columns": 4, "symbolType": "stroke"} if len(lines) > 1 else None
    shared = {"field": "line", "type": "nominal", "legend": legend}
    dashes = [_DASHES[index % len(_DASHES)] for index in range(len(lines))]
    at_x, at_y = {"field": "size", **across}, {"field": "figure", **up}
    marks: list[dict[str, Any]] = [
        {
            "mark": {"type": "line"},
            "encoding": {"x": at_x, "y": at_y, "strokeDash": {**shared, "scale": {"domain": lines, "range": dashes}}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {"x": at_x, "y": {"field": "least", **up}, "y2": {"field": "greatest"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {"x": {"field": "size, least", **across}, "x2": {"field": "size, greatest"}, "y": at_y},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 40, "tooltip": DATUM},
            "encoding": {"x": at_x, "y": at_y},
        },
    ]
    return {
        "data": {"values": list(found)},
        "height": 280,
        "encoding": {"color": {**shared, "scale": {"domain": lines}}},
        "layer": marks,
    }


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others: 1, 2, 5, 10, and so on; more where these are near, fewer where far apart."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    apart = high / low
    steps = (1, 2, 3, 4, 5, 6, 8) if apart < 8 else (1, 2, 5) if apart < 1000 else (1,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if 0.85 * low <= tick <= 1.18 * high]


def _point(line: str, setting: str, x: tuple[float, float, float], y: tuple[float, float, float]) -> dict[str, Any]:
    names = ("size", "size, least", "size, greatest", "figure", "least", "greatest")
    return {"line": line, "setting": setting, **dict(zip(names, (*x, *y), strict=True))}


def of_site(result: Result, table: str, site: str) -> list[Row]:
    """The rows of a table that are of a site."""
    return [row for row in result.tables.get(table, []) if row["site"] == site]


def principal(result: Result, site: str, most: float) -> list[tuple[float, float]]:
    """FVE of PCA at a site by the number of components, up to so many: some of them, evenly spread in their ratio."""
    known = [
        (float(row["width"]), float(row["fve"]))
        for row in of_site(result, "pca", site)
        if number(row.get("fve")) is not None and row["width"] <= most
    ]
    if not known:
        return []
    last = known[-1][0]
    wanted = {round(last ** (index / POINTS)) for index in range(POINTS + 1)}
    return [pair for pair in known if pair[0] in wanted]
