"""`python -m benchmarks.page [FIGURES] [PAGE]`: the figures that a run of benchmarks wrote down, as one HTML page.

Its tables, and a line chart for each figure of how something grows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.__main__ import OUTPUT
from benchmarks.outcome import Figure
from probekit.report import Document, Page, render_html


def page_of(outcome: dict[str, Any]) -> Page:
    """The page of one benchmark."""
    page = Page(outcome["title"])
    if outcome["figures"]:
        rows = [Figure(**figure).cells() for figure in outcome["figures"]]
        head = ["figure", "median", "10 % – 90 %", "goal", "met"]
        page.table(head, [[cell.replace("**", "") for cell in row] for row in rows], caption="Figures")
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


def html(document: dict[str, Any]) -> str:
    """All of it in one file that opens offline."""
    facts = [(what, str(value)) for what, value in document["conditions"].items()]
    pages = [(name, page_of(outcome)) for name, outcome in document["benchmarks"].items()]
    return render_html(Document("Benchmarks", "How fast is it, and at what cost?", facts=facts, pages=pages))


def main(arguments: list[str] | None = None) -> None:
    """Read the figures, write the page beside them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=OUTPUT, help=f"what a run wrote ({OUTPUT})")
    parser.add_argument("page", nargs="?", type=Path, help="where to write the page; beside the figures by default")
    options = parser.parse_args(arguments)
    written = options.page or options.figures.with_suffix(".html")
    written.write_text(html(json.loads(options.figures.read_text(encoding="utf-8"))), encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
