"""The study's report: verdicts, figures with their spread, charts, and the cells with links to their own reports."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from probekit.errors import UsageError
from probekit.report import Document, Page, render_html, render_markdown
from probekit.runs.command import option_text
from probekit.runs.directory import RunDirectory
from probekit.runs.studies.file import INCOMPLETE, UNTESTED, Chart, Expectation, Figure, StudyFile
from probekit.runs.studies.judge import Judgement, draw_lines

if TYPE_CHECKING:
    from probekit.runs.studies.carry_out import Study

PAGE_FILE = "page.json"
# Of one fact of the provenance; every cell has its own in its report.
MOST_SHOWN = 3
# A verdict is called as the file likes; these names say whether the claim holds.
HOLDS, FAILS = {"holds", "reproduced"}, {"fails", "refuted"}
# Values of a variable that are that many times as large as others are drawn at even spaces: 0.001, 0.01, 0.1.
WIDE = 50
# Verdicts, from which on their reasons are left out of the first table.
MANY = 12


def render_study(
    directory: RunDirectory, file: StudyFile, path: Path, changed: Mapping[str, Any], outcome: Study
) -> None:
    """Write `report.html`, `summary.md`, `page.json` and `verdicts.json` into the study's folder, and `alone.html`: the
    report without the cells and the links to them, for a place where the folder is not.
    """
    claims = ("Claims", _claims(file, outcome))
    pages = [claims, ("Runs", _runs(file, outcome))]
    command = ["probekit", "study", str(path)]
    for name, value in changed.items():
        command += ["--set", f"{name}={option_text(value)}"]
    document = Document(
        title=file.title,
        question=file.question or "Do these runs show what they should?",
        facts=[
            *((name, _shown(value)) for name, value in file.parameters.items() if _is_short(value)),
            ("Runs", f"{outcome.done} done, {len(outcome.failures)} failed, {outcome.missing} missing"),
        ],
        pages=pages,
        failures=[(outcome.label(key), sentence) for key, sentence in outcome.failures.items()],
        command=shlex.join(command),
        provenance=[
            *((f"parameter {name}", _shown(value)) for name, value in file.parameters.items() if not _is_short(value)),
            *_provenance(outcome),
        ],
    )
    counts = outcome.document()["cells"]
    directory.write_json(PAGE_FILE, {"cells": counts, "pages": [page.to_json() for _, page in pages]})
    directory.write_json("verdicts.json", outcome.document()["expectations"])
    directory.write("report.html", render_html(document).encode(errors="replace"))
    alone = replace(document, pages=[claims])
    directory.write("alone.html", render_html(alone).encode(errors="replace"))
    directory.write("summary.md", render_markdown(document).encode(errors="replace"))


def _is_short(value: Any) -> bool:
    """Whether a parameter is for the report's head: not one that is empty, or a list that is long or of lists."""
    if isinstance(value, list):
        return 0 < len(value) <= MOST_SHOWN and not any(isinstance(part, list | dict) for part in value)
    return not isinstance(value, dict)


def _shown(value: Any) -> str:
    """A parameter for the reader; of a long list the first few."""
    if not isinstance(value, list):
        return option_text(value)
    return _first_few([option_text(part) for part in value]) or "none"


def _claims(file: StudyFile, outcome: Study) -> Page:
    page = Page("Claims")
    judgements = outcome.judgements
    if judgements:
        page.finding(_in_short(judgements))
        _verdicts(page, judgements)
    if file.about:
        page.heading("How to read this")
        page.prose(file.about)
    for chart in file.charts:
        if chart.beside is None:
            _draw(page, chart, file, outcome)
    for expectation in file.expectations:
        of_it = [judgement for judgement in judgements if judgement.expectation is expectation]
        _answer(page, expectation, of_it)
        for chart in file.charts:
            if chart.beside == expectation.id:
                _draw(page, chart, file, outcome)
        _figures(page, expectation, [judgement for judgement in of_it if judgement.figures])
    return page


def _in_short(judgements: list[Judgement]) -> str:
    """How many claims hold and which do not; a claim that was judged on several things may hold on some of them."""
    found: dict[str, set[str]] = {}
    for judgement in judgements:
        found.setdefault(judgement.expectation.id, set()).add(judgement.verdict)
    hold = [name for name, verdicts in found.items() if verdicts <= HOLDS]
    part = [name for name, verdicts in found.items() if verdicts & HOLDS and name not in hold]
    fail = [name for name, verdicts in found.items() if verdicts <= FAILS]
    open_ = [name for name, verdicts in found.items() if verdicts <= {UNTESTED, INCOMPLETE}]
    others = len(found) - len(hold) - len(part) - len(fail) - len(open_)
    number = f"{len(found)} {'claim' if len(found) == 1 else 'claims'}"
    if not (hold or part or fail):
        said = f"{number}, with the verdicts {_counted(judgements)}."
    elif len(hold) == len(found):
        said = "The claim holds." if len(found) == 1 else f"All {number} hold."
    else:
        each = " on everything they were tested on" if part else ""
        parts = [f"{len(hold)} {'holds' if len(hold) == 1 else 'hold'}{each}"]
        parts += [f"{len(part)} only on some of it"] if part else []
        parts += [f"{len(fail)} {'does' if len(fail) == 1 else 'do'} not hold ({', '.join(fail)})"] if fail else []
        parts += [f"{others} came out in between or otherwise"] if others else []
        parts += [f"{len(open_)} could not be judged"] if open_ else []
        said = f"Of {number}, {'; '.join(parts)}."
    unmet = [judgement.label for judgement in judgements if judgement.met is False]
    return said + (f" Not as expected: {', '.join(unmet)}." if unmet else "")


def _counted(judgements: list[Judgement]) -> str:
    counted = Counter(judgement.verdict for judgement in judgements)
    return ", ".join(f"{name} {number}" for name, number in counted.most_common())


def _verdicts(page: Page, judgements: list[Judgement]) -> None:
    """The table of all verdicts, each with a link to what stands behind it. Of many, their reasons are a table of their
    own, so that the first can be taken in at a glance.
    """
    each = any(judgement.value is not None for judgement in judgements)
    many = len(judgements) > MANY
    columns = ["id", "verdict", *(["tested on"] if each else []), "claim"]
    rows = [
        [
            judgement.expectation.id,
            judgement.verdict + (" (not as expected)" if judgement.met is False else ""),
            *([judgement.of] if each else []),
            judgement.expectation.claim,
        ]
        for judgement in judgements
    ]
    reasons = [[*row, judgement.because] for row, judgement in zip(rows, judgements, strict=True)]
    targets = [f"#{_heading(judgement.expectation)}" for judgement in judgements]
    page.table(
        columns if many else [*columns, "because"],
        rows if many else reasons,
        caption="Every claim and its verdict; an id leads to the test, the figures and the rules",
        in_summary=not many,
        interactive=True,
        targets=targets,
        remark=f"{len(judgements)} {'verdict' if len(judgements) == 1 else 'verdicts'}: {_counted(judgements)}.",
    )
    if many:
        caption = "The same with the figures behind each verdict"
        page.table([*columns, "because"], reasons, caption, collapsed=True, in_summary=True, targets=targets)


def _heading(expectation: Expectation) -> str:
    return f"{expectation.id}: {expectation.claim}"


def _draw(page: Page, chart: Chart, file: StudyFile, outcome: Study) -> None:
    """Median and range against a variable."""
    try:
        drawn = draw_lines(chart, outcome.cells, outcome.runs, file.parameters)
    except UsageError as error:  # the other charts and the verdicts are none the worse
        page.note(str(error))
        return
    for each, lines in drawn:
        caption = chart.caption if each is None else f"{chart.caption}, {chart.each} {each}"
        kept = {name: {at: found for at, found in line.items() if found} for name, line in lines.items()}
        if not any(kept.values()):
            continue
        places = _places([at for line in kept.values() for at in line])
        page.band(
            {
                name: [(places[at], median(line[at]), min(line[at]), max(line[at])) for at in places if at in line]
                for name, line in kept.items()
            },
            x=chart.x,
            y=chart.y,
            caption=f"{caption}: median and range",
            log_y=chart.log_y,
        )


def _places(values: list[Any]) -> dict[Any, Any]:
    """Where each value of a variable is drawn: a number at its own place, unless numbers differ by orders of magnitude;
    those, and texts, side by side, numbers in their order.
    """
    distinct = list(dict.fromkeys(values))
    if not all(isinstance(at, int | float) and not isinstance(at, bool) for at in distinct):
        return {at: str(at) for at in distinct}
    distinct.sort()
    wide = distinct[0] > 0 and distinct[-1] > WIDE * distinct[0]
    return {at: f"{at:g}" if wide else at for at in distinct}


def _answer(page: Page, expectation: Expectation, judgements: list[Judgement]) -> None:
    """The verdicts on one claim, and how it was tested."""
    page.heading(_heading(expectation))
    paragraphs = []
    for judgement in judgements:
        of = judgement.of or "verdict"
        found = f"{of[:1].upper()}{of[1:]}: {judgement.verdict}."
        paragraphs.append(f"{found} {judgement.because} {judgement.follows}".strip())
    paragraphs += [f"Test: {expectation.test}"] if expectation.test else []
    paragraphs += [f"The source: “{expectation.source}”"] if expectation.source else []
    page.prose("\n\n".join(paragraphs))


def _figures(page: Page, expectation: Expectation, measured: list[Judgement]) -> None:
    """The figures that the verdicts rest on, with every value, and the rules."""
    if not measured:
        return
    each = expectation.each is not None
    page.table(
        [*([str(expectation.each)] if each else []), "figure", "n", "mean", "median (range)", "of what"],
        [
            [
                *([str(judgement.value)] if each else []),
                name,
                len(found := judgement.figures.get(name, [])),
                _digits(fmean(found)) if found else None,
                spread(found),
                _of_what(figure),
            ]
            for judgement in measured
            for name, figure in expectation.figures.items()
        ],
        caption="Figures by their names in the rules, each over n values",
    )
    _ticks(page, expectation, measured)
    page.table(
        ["verdict", "if"],
        [list(rule) for rule in expectation.verdicts.items()],
        caption="Rules",
        collapsed=True,
        remark="The first that is true gives the verdict; where none is, it is undecided.",
    )


def _ticks(page: Page, expectation: Expectation, measured: list[Judgement]) -> None:
    """Every value as a tick, a chart for each quantity; not of one that only says yes or no."""
    for quantity in dict.fromkeys(_quantity(figure) for figure in expectation.figures.values()):
        rows = [
            (f"{name}, {judgement.value}" if len(measured) > 1 else name, judgement.figures.get(name, []))
            for judgement in measured
            for name, figure in expectation.figures.items()
            if _quantity(figure) == quantity
        ]
        # Equal values fall on one tick: what there is of them stands in the table.
        ticks = dict.fromkeys((name, float(f"{value:.4g}")) for name, found in rows for value in found)
        points = [{"figure": name, "value": value} for name, value in ticks]
        if len(points) <= len(rows) or {value for _, value in ticks} <= {0.0, 1.0}:
            continue
        page.chart(
            {
                "data": {"values": points},
                "mark": {"type": "tick", "thickness": 2, "tooltip": True},
                "encoding": {
                    "x": {
                        "field": "value",
                        "type": "quantitative",
                        "scale": _scale([value for _, value in ticks]),
                        "axis": {"title": quantity, "tickCount": 8, "labelOverlap": True, "labelSeparation": 6},
                    },
                    "y": {
                        "field": "figure",
                        "type": "nominal",
                        "sort": None,
                        "axis": {"title": None, "labelLimit": 320},
                    },
                },
            },
            caption=f"Every value of {quantity} that occurs",
        )


def _quantity(figure: Figure) -> str:
    """What is measured: the column, or the metric without its site. Figures of one quantity share an axis."""
    return figure.column or (figure.metric or "").rsplit("/", 1)[-1]


def _of_what(figure: Figure) -> str:
    """`loss_ratio of 'schedules' (schedule linear)`: the quantity, its runs, and which of them or of their rows."""
    chosen = ", ".join(f"{name} {option_text(value)}" for name, value in {**figure.where, **figure.rows}.items())
    missing = f", {option_text(figure.missing)} where there is none" if figure.missing is not None else ""
    return f"{_quantity(figure)} of '{figure.run}'{f' ({chosen})' if chosen else ''}{missing}"


def _scale(sizes: list[float]) -> dict[str, Any]:
    """Logarithmic where the values differ by orders of magnitude, and can be drawn so."""
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


def _runs(file: StudyFile, outcome: Study) -> Page:
    page = Page("Runs")
    if outcome.failures or outcome.missing:
        page.finding(f"Runs: {outcome.done} done, {len(outcome.failures)} failed, {outcome.missing} missing.")
    else:
        page.finding("The one run is done." if outcome.done == 1 else f"All {outcome.done} runs are done.")
    states = {**dict.fromkeys(outcome.runs, "done"), **dict.fromkeys(outcome.failures, "failed")}
    for run in dict.fromkeys(cell.run for cell in outcome.cells):
        cells = [cell for cell in outcome.cells if cell.run == run]
        reports = [f"cells/{cell.key}/report.html" for cell in cells]
        page.heading(run)
        if file.runs[run].about:
            page.prose(file.runs[run].about)
        page.table(
            ["run", "state", "finding, or what went wrong"],
            [
                [
                    ", ".join(f"{name} {value}" for name, value in cell.variables.items()),
                    states.get(cell.key, "missing"),
                    outcome.failures.get(cell.key) or _findings(outcome, cell.key),
                ]
                for cell in cells
            ],
            caption=f"Runs of '{run}', each with its report",
            collapsed=len(cells) > 12,
            interactive=len(cells) > 12,
            targets=[report if (outcome.path / report).is_file() else None for report in reports],
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
