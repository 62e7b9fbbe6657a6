"""The study's report: verdicts, figures with their spread, charts, and the cells with links to their own reports."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit.errors import UsageError
from probekit.report import Document, Page, render_html, render_markdown
from probekit.runs.command import option_text
from probekit.runs.directory import RunDirectory
from probekit.runs.studies.file import Chart, Expectation, StudyFile
from probekit.runs.studies.judge import Judgement, draw_lines

if TYPE_CHECKING:
    from probekit.runs.studies.carry_out import Study

PAGE_FILE = "page.json"
# Of one fact of the provenance; every cell has its own in its report.
MOST_SHOWN = 3


def render_study(
    directory: RunDirectory, file: StudyFile, path: Path, changed: Mapping[str, Any], outcome: Study
) -> None:
    """Write `report.html`, `summary.md`, `page.json` and `verdicts.json` into the study's folder, and `alone.html`: the
    report without the cells and the links to them, for a place where the folder is not.
    """
    expectations = ("Expectations", _expectations(file, outcome))
    pages = [expectations, ("Cells", _cells(outcome))]
    command = ["probekit", "study", str(path)]
    for name, value in changed.items():
        command += ["--set", f"{name}={option_text(value)}"]
    document = Document(
        title=file.title,
        question=file.question or "Do these runs show what they should?",
        facts=[
            *((name, _shown(value)) for name, value in file.parameters.items()),
            ("Cells", f"{outcome.done} done, {len(outcome.failures)} failed, {outcome.missing} missing"),
        ],
        pages=pages,
        failures=[(outcome.label(key), sentence) for key, sentence in outcome.failures.items()],
        command=shlex.join(command),
        provenance=_provenance(outcome),
    )
    counts = outcome.document()["cells"]
    directory.write_json(PAGE_FILE, {"cells": counts, "pages": [page.to_json() for _, page in pages]})
    directory.write_json("verdicts.json", outcome.document()["expectations"])
    directory.write("report.html", render_html(document).encode(errors="replace"))
    alone = replace(document, pages=[expectations])
    directory.write("alone.html", render_html(alone).encode(errors="replace"))
    directory.write("summary.md", render_markdown(document).encode(errors="replace"))


def _shown(value: Any) -> str:
    """A parameter for the reader; of a long list the first few."""
    if not isinstance(value, list):
        return option_text(value)
    return _first_few([option_text(part) for part in value]) or "none"


def _expectations(file: StudyFile, outcome: Study) -> Page:
    page = Page("Expectations")
    judgements = outcome.judgements
    counted = Counter(judgement.verdict for judgement in judgements)
    failed = [judgement.label for judgement in judgements if judgement.met is False]
    if judgements:
        listed = ", ".join(f"{name} {number}" for name, number in counted.most_common())
        page.finding(
            f"Verdicts, {len(judgements)} in all: {listed}." + (f" Not met: {', '.join(failed)}." if failed else "")
        )
        each = any(judgement.value is not None for judgement in judgements)
        page.table(
            ["id", *(["of"] if each else []), "verdict", "claim", "because"],
            [
                [
                    judgement.expectation.id,
                    *([judgement.of] if each else []),
                    judgement.verdict + (" (not met)" if judgement.met is False else ""),
                    judgement.expectation.claim,
                    judgement.because,
                ]
                for judgement in judgements
            ],
            caption="What was claimed, and what was found",
            in_summary=True,
        )
    for chart in file.charts:
        if chart.beside is None:
            _draw(page, chart, file, outcome)
    for expectation in file.expectations:
        of_it = [judgement for judgement in judgements if judgement.expectation is expectation]
        _one(page, expectation, of_it)
        for chart in file.charts:
            if chart.beside == expectation.id:
                _draw(page, chart, file, outcome)
    return page


def _draw(page: Page, chart: Chart, file: StudyFile, outcome: Study) -> None:
    """Median and range against a number, or a table where the variable is no number."""
    try:
        drawn = draw_lines(chart, outcome.cells, outcome.runs, file.parameters)
    except UsageError as error:  # the other charts and the verdicts are none the worse
        page.note(str(error))
        return
    for each, lines in drawn:
        caption = chart.caption if each is None else f"{chart.caption}, {each}"
        kept = {name: {at: found for at, found in line.items() if found} for name, line in lines.items()}
        if not any(kept.values()):
            continue
        if all(isinstance(at, int | float) and not isinstance(at, bool) for line in kept.values() for at in line):
            page.band(
                {
                    name: [(at, median(found), min(found), max(found)) for at, found in sorted(line.items())]
                    for name, line in kept.items()
                },
                x=chart.x,
                y=chart.y,
                caption=f"{caption}: median and range",
                log_y=chart.log_y,
            )
            continue
        page.table(
            [chart.x, *kept],
            [
                [str(at), *(spread(line.get(at, [])) for line in kept.values())]
                for at in dict.fromkeys(at for line in kept.values() for at in line)
            ],
            caption=f"{caption}: median, least to greatest in brackets",
        )


def _one(page: Page, expectation: Expectation, judgements: list[Judgement]) -> None:
    """The figures of one expectation, its rules, and the values themselves as a strip chart."""
    page.heading(f"{expectation.id}: {expectation.claim}")
    paragraphs = [expectation.test]
    paragraphs += [f"Its source says: “{expectation.source}”"] if expectation.source else []
    for judgement in judgements:
        of = f"{judgement.of}: " if judgement.of else ""
        paragraphs.append(f"{of}{judgement.verdict}. {judgement.because} {judgement.follows}".strip())
    page.prose("\n\n".join(part for part in paragraphs if part))
    measured = [judgement for judgement in judgements if judgement.figures]
    if not measured:
        return
    each = expectation.each is not None
    page.table(
        [*([str(expectation.each)] if each else []), "figure", "run", "values", "median (least – greatest)"],
        [
            [
                *([str(judgement.value)] if each else []),
                name,
                figure.run,
                len(judgement.figures.get(name, [])),
                spread(judgement.figures.get(name, [])),
            ]
            for judgement in measured
            for name, figure in expectation.figures.items()
        ],
        caption="Figures",
    )
    # Equal values fall on one tick: what there is of them stands in the table.
    ticks = dict.fromkeys(
        (f"{name}, {judgement.value}" if len(measured) > 1 else name, float(f"{value:.4g}"))
        for judgement in measured
        for name, found in judgement.figures.items()
        for value in found
    )
    points = [{"figure": name, "value": value} for name, value in ticks]
    if len(points) > sum(len(judgement.figures) for judgement in measured):
        page.chart(
            {
                "data": {"values": points},
                "mark": {"type": "tick", "thickness": 2, "tooltip": True},
                "encoding": {
                    "x": {"field": "value", "type": "quantitative", "scale": _scale(points)},
                    "y": {
                        "field": "figure",
                        "type": "nominal",
                        "sort": None,
                        "axis": {"title": None, "labelLimit": 320},
                    },
                },
            },
            caption="Every value that occurs",
        )
    page.table(
        ["verdict", "if"], [list(rule) for rule in expectation.verdicts.items()], caption="Its rules", collapsed=True
    )


def _scale(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Logarithmic where the values differ by orders of magnitude, and can be drawn so."""
    sizes = [point["value"] for point in points]
    return {"type": "log"} if min(sizes) > 0 and max(sizes) > 1000 * min(sizes) else {"zero": False}


def spread(values: list[float]) -> str | None:
    """`median (least – greatest)` with three digits, or None."""
    if not values:
        return None
    if min(values) == max(values):
        return _digits(values[0])
    return f"{_digits(median(values))} ({_digits(min(values))} – {_digits(max(values))})"


def _digits(value: float) -> str:
    """Three digits, or all of a number of steps: 2000, not 2e+03."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value:.3g}"


def _cells(outcome: Study) -> Page:
    page = Page("Cells")
    page.finding(f"Runs: {outcome.done} done, {len(outcome.failures)} failed, {outcome.missing} missing.")
    states = {**dict.fromkeys(outcome.runs, "done"), **dict.fromkeys(outcome.failures, "failed")}
    for run in dict.fromkeys(cell.run for cell in outcome.cells):
        cells = [cell for cell in outcome.cells if cell.run == run]
        page.heading(run)
        page.table(
            [*cells[0].variables, "state", "finding or failure"],
            [
                [
                    *(str(value) for value in cell.variables.values()),
                    states.get(cell.key, "missing"),
                    outcome.failures.get(cell.key) or _findings(outcome, cell.key),
                ]
                for cell in cells
            ],
            caption=f"{len(cells)} cells of '{run}'",
            collapsed=len(cells) > 12,
        )
        page.links(
            [
                (cell.label, f"cells/{cell.key}/report.html")
                for cell in cells
                if (outcome.path / "cells" / cell.key / "report.html").is_file()
            ],
            caption=f"Their reports: {run}",
        )
    return page


def _findings(outcome: Study, key: str) -> str:
    run = outcome.runs.get(key)
    return " ".join(result.finding for result in run.results.values()) if run else ""


def _provenance(outcome: Study) -> list[tuple[str, str]]:
    """Versions and weights of the cells, those that all have in common once; of many, as from many seeds, the first."""
    found: dict[str, dict[str, None]] = {}
    for run in outcome.runs.values():
        for package, number in run.manifest["versions"].items():
            found.setdefault(f"version of {package}", {})[number] = None
        name = run.manifest["configuration"]["model"]["name"]
        for fact in ("weights_sha256", "revision", "dtype", "device"):
            if fact in run.manifest.get("model", {}):
                found.setdefault(f"{name}: {fact}", {})[str(run.manifest["model"][fact])] = None
    return [(name, _first_few(list(values))) for name, values in found.items()]


def _first_few(values: list[str]) -> str:
    more = f" and {len(values) - MOST_SHOWN} more" if len(values) > MOST_SHOWN else ""
    return ", ".join(values[:MOST_SHOWN]) + more
