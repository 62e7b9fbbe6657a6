"""Curves of several runs in one chart: one colour a run, its repetitions as a median in a band."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from probekit.report import Page
from probekit.report.blocks import Block
from probekit.runs.comparison.differences import Metric

# What a name says where the series of a chart are repetitions of one thing: a plugin need only name them so.
REPETITION = re.compile(r"(?:^|[,;:]?\s+)(restart|seed|sample|repeat|trial)\s+\d+\b", re.IGNORECASE)
MOST_CHARTS = 8
FEWEST_PLACES = 3
_NUMBERED_METRIC = re.compile(r"(?P<stem>.*?)(?P<number>\d+)/(?P<figure>[^/]+)")

# One point of a band: x, a number or a text; median, least, greatest, None for a gap.
Point = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class Curve:
    """One run's part of a chart: the name that its series has there, and the series, several if it is repeated."""

    name: str
    repetitions: list[list[Point]]


def overlay_curves(blocks: Mapping[int, Block], labels: Sequence[str], page: Page) -> None:
    """The `lines` or `band` blocks of several sides as one chart.

    Where a block has series of several names, as one of decoders has, there is a chart for each name that two sides
    share. What one side alone has, such as a walk of ten inner steps, shares a chart with what the others alone have,
    and with the series that are the same on every side, such as a control.
    """
    curves = {side: _curves(block) for side, block in blocks.items()}
    caption = next(iter(blocks.values()))["caption"]
    if all(len(named) == 1 for named in curves.values()):
        _chart(caption, {side: next(iter(named.values())) for side, named in curves.items()}, blocks, labels, page)
        return
    names = dict.fromkeys(name for named in curves.values() for name in named)
    shared = [name for name in names if sum(name in named for named in curves.values()) > 1]
    if sum(any(name not in shared for name in named) for named in curves.values()) > 1:
        same = [name for name in shared if _is_same(name, curves, labels)]
        own = {
            own_name(name, label): curve
            for side, label in enumerate(labels)
            for name, curve in curves.get(side, {}).items()
            if name not in shared
        }
        if len(own) + len(same) <= MOST_CHARTS:
            every = {in_every_run(name): next(iter(curves.values()))[name] for name in same}
            _draw(caption, {**own, **every}, blocks, page)
            shared = [name for name in shared if name not in same]
    for name in shared[:MOST_CHARTS]:
        having = {side: named[name] for side, named in curves.items() if name in named}
        _chart(_with_name(caption, name), having, blocks, labels, page)
    if len(shared) > MOST_CHARTS:
        page.note(
            f"'{caption}' has {len(shared)} series in common, of which the first {MOST_CHARTS} are drawn; "
            "the runs' own reports have them all."
        )


def overlay_metrics(metrics: Sequence[Metric], labels: Sequence[str], page: Page) -> None:
    """Metrics that are one figure at several numbered places (`block.0/exact_rate`, `block.1/exact_rate`, …) as curves
    over these places, where they differ.
    """
    found: dict[tuple[str, str], dict[int, dict[int, Any]]] = {}
    differ = set()
    for metric in metrics:
        match = _NUMBERED_METRIC.fullmatch(metric.name)
        if match:
            family = (match["stem"].rstrip(".-_ "), match["figure"])
            by_side = found.setdefault(family, {})
            differ |= {family} if metric.differs(len(labels)) else set()
            for side, value in metric.values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    by_side.setdefault(side, {})[int(match["number"])] = value
    families = [
        (family, by_side)
        for family, by_side in found.items()
        if family in differ and len({place for values in by_side.values() for place in values}) >= FEWEST_PLACES
    ]
    for (stem, figure), by_side in families[:MOST_CHARTS]:
        what, place = figure.replace("_", " "), stem or "number"
        series = {label: sorted(by_side.get(side, {}).items()) for side, label in enumerate(labels)}
        page.lines(series, x=place, y=what, caption=f"{what[:1].upper()}{what[1:]} by {place}")


def own_name(name: str, label: str) -> str:
    """What a run's series is called beside other runs': `steps 50: loss`, or just the run's label if that says it."""
    return label if name in ("", label) else f"{label}: {name}"


def in_every_run(name: str) -> str:
    """What a series is called that is the same in every run."""
    return f"{name}, in every run"


def _with_name(caption: str, name: str) -> str:
    """`Loss: cosine`; before a remark in brackets, `Loss: cosine (by step)`."""
    what, bracket, remark = caption.partition(" (")
    return ": ".join(filter(None, [what, name])) + bracket + remark


def _is_same(name: str, curves: Mapping[int, Mapping[str, Curve]], labels: Sequence[str]) -> bool:
    """Whether every side has this curve, and the same."""
    found = [named[name] for named in curves.values() if name in named]
    return len(found) == len(labels) and all(curve == found[0] for curve in found)


def _curves(block: Block) -> dict[str, Curve]:
    """The series of a block by name, repetitions of the same together."""
    curves: dict[str, Curve] = {}
    for series in block["series"]:
        name = REPETITION.sub("", series["name"]).strip(" ,;:")
        points = [_as_band(point) for point in series["points"] if point[0] is not None]
        curves.setdefault(name, Curve(name, [])).repetitions.append(points)
    return curves


def _as_band(point: Sequence[Any]) -> Point:
    """A point of a line is a band without width."""
    x, y, low, high = point if len(point) == 4 else (*point, point[1], point[1])
    return x, y, low, high


def _chart(
    caption: str, curves: Mapping[int, Curve], blocks: Mapping[int, Block], labels: Sequence[str], page: Page
) -> None:
    """Every side has its place in the key, and so its colour, in every chart; one that lacks the curve says so."""
    one_name = len({curve.name for curve in curves.values()}) == 1
    named: dict[str, Curve] = {}
    for side, label in enumerate(labels):
        if side not in curves:
            named[f"{label}: has no such curve"] = Curve("", [])
        else:
            named[label if one_name else own_name(curves[side].name, label)] = curves[side]
    _draw(caption, named, blocks, page)


def _draw(caption: str, curves: Mapping[str, Curve], blocks: Mapping[int, Block], page: Page) -> None:
    """A line for each curve, or a band where one is repeated or is one."""
    series = {name: together(curve.repetitions) for name, curve in curves.items()}
    first = next(iter(blocks.values()))
    x, y, log_y = first["x"], first["y"], all(block["log_y"] for block in blocks.values())
    counts = sorted(len(curve.repetitions) for curve in curves.values() if curve.repetitions)
    number = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    repeated = f"{number} {_repetitions(blocks.values())}" if counts[-1] > 1 else ""
    if all(low == middle == high for points in series.values() for _, middle, low, high in points):
        lines = {name: [point[:2] for point in points] for name, points in series.items()}
        page.lines(lines, x, y, f"{caption} ({repeated}, all alike)" if repeated else caption, log_y)
    else:
        page.band(series, x, y, f"{caption} (median and range of {repeated})" if repeated else caption, log_y)


def _repetitions(blocks: Iterable[Block]) -> str:
    """What the repetitions are called: `restarts`, or `repetitions` where series have several words for them."""
    found = (REPETITION.search(series["name"]) for block in blocks for series in block["series"])
    words = {match[1].lower() for match in found if match}
    return f"{words.pop()}s" if len(words) == 1 else "repetitions"


def together(repetitions: Sequence[Sequence[Point]]) -> list[Point]:
    """Repetitions as one curve: at each x the median of those that have a figure there, and the range of all."""
    if len(repetitions) <= 1:
        return [point for points in repetitions for point in points]
    places: dict[Any, list[Point]] = {}
    for points in repetitions:
        for point in points:
            places.setdefault(point[0], []).append(point)
    # Texts, such as sites, stay in the order in which they appear.
    order = places if any(isinstance(place, str) for place in places) else sorted(places)
    return [(x, *_spread(places[x])) for x in order]


def _spread(points: Sequence[Point]) -> tuple[Any, Any, Any]:
    middle, low, high = ([point[part] for point in points if point[part] is not None] for part in (1, 2, 3))
    if not middle or not low or not high:
        return None, None, None
    return median(middle), min(low), max(high)
