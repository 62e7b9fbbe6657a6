"""`python -m benchmarks.page [FIGURES] [PAGE]`: the figures that a run of benchmarks wrote down, as one HTML page.

First what was to be reached and what was left out; then for each benchmark its tables, a chart of the ratios of all
sides to the floor, and a line chart for each figure of how something grows. A full run writes it by itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.outcome import SPREAD, Comparison, Figure, Row
from probekit.report import Document, Page, render_html

OUTPUT = Path("reports/output/bench/latest.json")
NAME = "index.html"
# Pixels of the ratio chart: for each work in a row, and between rows.
BAR, GAP = 9, 14
# The columns of a comparison that the page shows: roles are said by the order, and rounds above the table.
SHOWN = (0, 2, 3, 4, 5, 6, 8)


def comparisons_of(outcome: Mapping[str, Any]) -> list[Comparison]:
    """The comparisons of a benchmark, out of what was written down."""
    return [
        Comparison(each["work"], each["floor"], [Row(**row) for row in each["rows"]])
        for each in outcome.get("comparisons", [])
    ]


def page_of(outcome: Mapping[str, Any]) -> Page:
    """The page of one benchmark."""
    page = Page(outcome["title"])
    page.finding(found(outcome))
    for failure in outcome.get("failures", []):
        page.note(f"Failed: {failure}")
    comparisons = comparisons_of(outcome)
    if comparisons:
        page.chart(
            ratio_chart(comparisons),
            caption=f"How many times as long as {comparisons[0].floor}: the median, from 10 % to 90 % of the rounds",
            description="A dot and a line for each side and work, on a logarithmic axis; the values are in the tables.",
        )
    for each in comparisons:
        rounds = next(row.rounds for row in each.rows if row.rounds is not None)
        rows = [[plain(row.cells())[column] for column in SHOWN] for row in each.rows]
        head = [each.head()[column] for column in SHOWN]
        page.table(head, rows, caption=f"{each.work}: {rounds} round{'s' if rounds > 1 else ''}")
    if outcome["figures"]:
        rows = [plain(Figure(**figure).cells()) for figure in outcome["figures"]]
        page.table(["figure", "median", *SPREAD], rows, caption="Figures")
    if outcome["sides"]:
        columns = list(outcome["sides"][0])
        page.table(columns, [[side[column] for column in columns] for side in outcome["sides"]], caption="Times")
    for series in outcome.get("series", []):
        head = [series["title"], series["along"], *series["columns"]]
        page.table(head, [[name, place, *values] for name, place, values in series["rows"]], caption=series["title"])
        names = list(dict.fromkeys(name for name, _, _ in series["rows"]))
        for number, column in enumerate(series["columns"]):
            lines = {
                name: [(place, values[number]) for one, place, values in series["rows"] if one == name]
                for name in names
            }
            page.lines(lines, x=series["along"], y=column, caption=f"{column}, {series['title']}")
    for note in outcome["notes"]:
        page.note(note)
    return page


def ratio_chart(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """A Vega-Lite chart of every side's ratio to the floor, with its spread: a row for each side, a colour a work."""
    values = [
        {"side": row.side, "work": each.work, "ratio": row.value, "low": row.low, "high": row.high}
        for each in comparisons
        for row in each.rows
        if row.value is not None and row.role != "floor"
    ]
    works = [each.work for each in comparisons]
    sides = {value["side"] for value in values}
    axis = {"format": "~g", "tickCount": 6, "title": None}
    ratio = {"type": "quantitative", "scale": {"type": "log", "nice": False}, "axis": axis}
    key = {"title": None, "orient": "top", "columns": {"expr": "width < 360 ? 1 : 2"}}
    placed = {
        "y": {"field": "side", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 180}},
        "yOffset": {"field": "work", "type": "nominal", "sort": works},
        "color": {"field": "work", "type": "nominal", "sort": works, "legend": key},
    }
    spread = {"x": {"field": "low", **ratio}, "x2": {"field": "high"}, **placed}
    return {
        "data": {"values": values},
        "height": len(sides) * (BAR * len(works) + GAP),
        "layer": [
            {
                "data": {"values": [{"floor": 1}]},
                "mark": {"type": "rule", "strokeDash": [2, 3]},
                "encoding": {"x": {"field": "floor", **ratio}},
            },
            {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.6}, "encoding": spread},
            {
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": 45, "tooltip": {"content": "data"}},
                "encoding": {"x": {"field": "ratio", **ratio}, **placed},
            },
        ],
    }


def goals_of(outcome: Mapping[str, Any]) -> list[Figure]:
    """What was to be reached in a benchmark."""
    of_sides = [
        Figure(f"{each.work}: {row.side} / {each.floor}", row.value, row.low, row.high, goal=row.goal)
        for each in comparisons_of(outcome)
        for row in each.rows
        if row.goal is not None and row.value is not None
    ]
    return [*of_sides, *(Figure(**each) for each in outcome["figures"] if each["goal"] is not None)]


def found(*outcomes: Mapping[str, Any]) -> str:
    """How many goals are met, in one sentence, and how much failed, in another."""
    goals = [figure for outcome in outcomes for figure in goals_of(outcome)]
    failures = sum(len(outcome.get("failures", [])) for outcome in outcomes)
    met = sum(bool(figure.met) for figure in goals)
    said = f"{met} of {len(goals)} goals are met." if goals else "No goal was set."
    return f"{said} {failures} failed." if failures else said


def summary(outcomes: Sequence[Mapping[str, Any]]) -> Page:
    """What was to be reached and whether it was, and who was left out of what, and why."""
    page = Page("Goals")
    page.finding(found(*outcomes))
    goals = [[outcome["title"], *plain(figure.cells())] for outcome in outcomes for figure in goals_of(outcome)]
    if goals:
        page.table(["benchmark", "figure", "median", *SPREAD], goals, caption="What was to be reached")
    absent = [
        [each.work, row.side, row.left_out]
        for outcome in outcomes
        for each in comparisons_of(outcome)
        for row in each.rows
        if row.left_out
    ]
    if absent:
        page.table(["work", "side", "why"], absent, caption="Left out")
    return page


def plain(cells: Sequence[str]) -> list[str]:
    """Cells without the marks of Markdown."""
    return [cell.replace("**", "") for cell in cells]


def html(document: Mapping[str, Any]) -> str:
    """All of it in one file that opens offline."""
    facts = [(what, str(value)) for what, value in document["conditions"].items()]
    quick = bool(document.get("quick"))
    if quick:
        facts.append(("quick", "a few rounds, on small models: it shows that it works, not how fast"))
    benchmarks = document["benchmarks"]
    pages = [
        ("goals", summary(list(benchmarks.values()))),
        *((name, page_of(outcome)) for name, outcome in benchmarks.items()),
    ]
    failures = [(name, each) for name, outcome in benchmarks.items() for each in outcome.get("failures", [])]
    title, question = "Benchmarks", "How fast is it, and at what cost?"
    command = "python -m benchmarks" + " --quick" * quick
    return render_html(Document(title, question, facts=facts, pages=pages, failures=failures, command=command))


def main(arguments: list[str] | None = None) -> None:
    """Read the figures, write the page beside them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=OUTPUT, help=f"what a run wrote ({OUTPUT})")
    parser.add_argument(
        "page", nargs="?", type=Path, help=f"where to write the page; {NAME} beside the figures by default"
    )
    options = parser.parse_args(arguments)
    written = options.page or options.figures.with_name(NAME)
    written.write_text(html(json.loads(options.figures.read_text(encoding="utf-8"))), encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
