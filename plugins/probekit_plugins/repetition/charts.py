"""Bars as Vega-Lite specs: groups side by side, with their spread, and random tokens' own figure as a tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROW, THIN_ROW = 22, 13
RANDOM = "random tokens"

Bar = Mapping[str, Any]


def bars(values: Sequence[Bar], group: str, figure: str) -> dict[str, Any]:
    """A bar for each value, `{group: …, figure: …, "low": …, "high": …, "random": …}`, all between 0 and 1.

    A thin line goes from the low to the high end, a tick in a colour of its own is what random tokens come to.
    """
    spec = _chart(values, group, ROW * len(values))
    x = _x(figure)
    key = {"type": "nominal", "scale": {"domain": [figure, RANDOM]}, "legend": _LEGEND}
    bar = {"mark": _BAR, "encoding": {"x": x, "color": {"datum": figure, **key}}}
    line = {
        "mark": {"type": "rule", "strokeWidth": 1.5},
        "encoding": {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
    }
    tick = {
        "mark": {"type": "tick", "thickness": 4, "size": ROW * 0.8, "opacity": 1},
        "encoding": {"x": {"field": "random", "type": "quantitative"}, "color": {"datum": RANDOM, **key}},
    }
    return {**spec, "layer": [bar, line, tick]}


def grouped_bars(values: Sequence[Bar], group: str, figure: str, part: str) -> dict[str, Any]:
    """Several bars within each group, told apart by colour: `{group: …, part: …, figure: …}`."""
    parts = list(dict.fromkeys(value[part] for value in values))
    spec = _chart(values, group, THIN_ROW * len(values) + 8 * len(values) // len(parts))
    colour = {"field": part, "type": "nominal", "sort": parts, "legend": _LEGEND}
    offset = {"field": part, "sort": parts}
    encoding = {**spec["encoding"], "x": _x(figure), "yOffset": offset, "color": colour}
    return {**spec, "mark": _BAR, "encoding": encoding}


_BAR = {"type": "bar", "tooltip": {"content": "data"}, "cornerRadiusEnd": 2}
_LEGEND = {"orient": "top", "title": None, "symbolType": "square"}


def _x(figure: str) -> dict[str, Any]:
    return {
        "field": figure,
        "type": "quantitative",
        "title": figure,
        "scale": {"domain": [0, 1]},
        "axis": {"tickCount": 5},
    }


def _chart(values: Sequence[Bar], group: str, height: int) -> dict[str, Any]:
    groups = list(dict.fromkeys(value[group] for value in values))
    y = {"field": group, "type": "nominal", "sort": groups, "title": None, "axis": {"labelLimit": 360}}
    return {"data": {"values": [dict(value) for value in values]}, "encoding": {"y": y}, "height": height + 10}


def rounded(value: Any) -> Any:
    """A share to four digits: more would say nothing, and make a table wide."""
    return round(value, 4) if isinstance(value, float) else value
