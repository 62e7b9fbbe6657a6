"""The comparison as a report: what is compared and what differs, then a page for each analysis that runs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probekit.report import Document, Page
from probekit.runs.comparison.curves import overlay_metrics
from probekit.runs.comparison.differences import BySide, Metric, differing, metrics_of, named, settings, shown
from probekit.runs.comparison.overlay import common_prose, overlay
from probekit.runs.comparison.sides import Side

MISSING = "missing"
MOST_NAMED = 3
MOST_OPEN_METRICS = 12


def draw(sides: Sequence[Side], analyses: Sequence[str], command: str) -> Document:
    """The report of a comparison of these runs in these analyses, which all of them finished."""
    labels = [side.label for side in sides]
    opening = _opening(sides, analyses)
    pages = [(opening.title, opening)]
    pages += [(name, _page(sides, name)) for name in analyses]
    configurations = [settings(side.manifest) for side in sides]
    same = {
        key: configurations[0][key]
        for key in ("model.name", "prompts", "seed")
        if key in configurations[0] and all(other.get(key) == configurations[0][key] for other in configurations)
    }
    names = {"model.name": "Model", "prompts": "Prompts", "seed": "Seed"}
    provenance = [(f"command of {side.label}", str(side.manifest.get("command", "–"))) for side in sides]
    versions = [dict(side.manifest.get("versions", {})) for side in sides]
    other = differing(versions)  # which the opening page shows
    provenance += [
        (f"version of {package}", str(text)) for package, text in versions[0].items() if package not in other
    ]
    return Document(
        title=f"Comparison: {_listed(labels)}" if len(labels) <= MOST_NAMED else f"Comparison of {len(labels)} runs",
        question="What did each run find, and which setting is it that differs?",
        facts=[
            ("Runs", str(len(sides))),
            ("Analyses" if len(analyses) > 1 else "Analysis", ", ".join(analyses)),
            *((names[key], shown(value)) for key, value in same.items() if value != []),
            ("Reference run", labels[0]),
        ],
        pages=pages,
        failures=[(f"{name}, {side.label}", text) for side in sides for name, text in side.failures.items()],
        command=command,
        provenance=provenance,
    )


def _opening(sides: Sequence[Side], analyses: Sequence[str]) -> Page:
    labels = [side.label for side in sides]
    page = Page("What is compared")
    changed = differing([settings(side.manifest) for side in sides])
    page.finding(_in_a_sentence(sides, analyses, changed))
    models = [side.manifest["configuration"]["model"] for side in sides]
    facts: list[dict[str, Any]] = [dict(side.manifest.get("model", {})) for side in sides]
    page.table(
        ["run", "model", "weights", "precision", "folder", "status"],
        [
            [
                side.label,
                str(model["name"]),
                "random" if model["weights"] == "random" else "trained",
                " ".join(filter(None, [str(loaded.get("dtype", "")), model["quantization"]])),
                str(side.path),
                side.status,
            ]
            for side, model, loaded in zip(sides, models, facts, strict=True)
        ],
        caption="The runs",
    )
    if changed:
        options = {named(key): values for key, values in changed.items()}
        page.table(
            ["setting", *labels], _rows(options, labels, MISSING), caption="Options and configuration that differ"
        )
    else:
        page.prose("The runs have the same options and configuration.")
    loaded = differing(facts)
    if loaded:
        page.table(["fact", *labels], _rows(loaded, labels), caption="Facts of the loaded models that differ")
    versions = differing([dict(side.manifest.get("versions", {})) for side in sides])
    if versions:
        page.table(["package", *labels], _rows(versions, labels), caption="Versions that differ")
    if _tokens_differ(sides):
        page.note("The same prompts are other tokens in the runs, so positions do not correspond.")
    for name in dict.fromkeys(name for side in sides for name in side.pages if name not in analyses):
        having = [side.label for side in sides if name in side.pages]
        page.note(f"{name} is left out: only {_listed(having)} finished it.")
    return page


def _in_a_sentence(sides: Sequence[Side], analyses: Sequence[str], changed: dict[str, BySide]) -> str:
    start = f"{len(sides)} runs of {_listed(analyses)}"
    if not changed:
        return f"{start} with the same options and configuration."
    if len(changed) > MOST_NAMED:
        return f"{start} that differ in {len(changed)} settings."
    parts = []
    for key, values in changed.items():
        texts = [shown(values[number]) if number in values else MISSING for number in range(len(sides))]
        brief = all(len(text) <= 24 for text in texts) and len(texts) <= MOST_NAMED
        parts.append(f"{named(key)} ({' / '.join(texts)})" if brief else named(key))
    return f"{start} that differ in {_listed(parts)}."


def _rows(changed: dict[str, BySide], labels: Sequence[str], absent: str = "–") -> list[list[str]]:
    return [
        [key, *(shown(values[number]) if number in values else absent for number in range(len(labels)))]
        for key, values in changed.items()
    ]


def _tokens_differ(sides: Sequence[Side]) -> bool:
    """Whether runs of the same prompts have them in other tokens, as those of another tokenizer do."""
    prompts = [[(part["text"], part["tokens"]) for part in side.manifest.get("prompts", [])] for side in sides]
    return any(
        [text for text, _ in other] == [text for text, _ in prompts[0]] and other != prompts[0] for other in prompts
    )


def _page(sides: Sequence[Side], name: str) -> Page:
    labels = [side.label for side in sides]
    pages = [side.pages[name] for side in sides]
    page = Page(name)
    for label, own in zip(labels, pages, strict=True):
        for finding in own.findings or ["No finding was stated."]:
            page.finding(f"{label}: {finding}")
    for paragraph in common_prose(pages):
        page.prose(paragraph)
    metrics = metrics_of([side.metrics[name] for side in sides])
    charts, tables = Page(""), Page("")
    overlay_metrics(metrics, labels, charts)
    rows = _tables_of_metrics(metrics, labels, tables)
    first = charts.blocks + (tables.blocks if rows <= MOST_OPEN_METRICS else [])
    if first:
        page.heading("Metrics")
        page.blocks += first
    overlay(pages, labels, page)
    if rows > MOST_OPEN_METRICS:  # names out of a program, which are not what a reader begins with
        page.heading("Metrics one by one")
        page.blocks += tables.blocks
    notes = [[block["text"] for block in own.blocks if block["type"] == "note"] for own in pages]
    for note in dict.fromkeys(note for own in notes for note in own):
        having = [label for label, own in zip(labels, notes, strict=True) if note in own]
        page.note(note if len(having) == len(sides) else f"{_listed(having)}: {note}")
    return page


def _tables_of_metrics(metrics: Sequence[Metric], labels: Sequence[str], page: Page) -> int:
    """The metrics that differ, those that only some runs have, and folded, those that are the same everywhere. Many
    rows are folded. Returns how many metrics are not the same everywhere.
    """
    sides = len(labels)
    everywhere = [metric for metric in metrics if len(metric.values) == sides]
    changed = [metric for metric in everywhere if metric.differs(sides)]
    partly = [metric for metric in metrics if len(metric.values) < sides]
    same = [metric for metric in everywhere if not metric.differs(sides)]
    if changed:
        _metrics(changed, labels, page, f"Metrics that differ; Δ is the difference to {labels[0]}")
    if partly:
        _metrics(partly, labels, page, "Metrics that only some of the runs have")
    if same:
        page.table(
            ["metric", "every run"],
            [[metric.name, metric.values[0]] for metric in same],
            caption="Metrics that are the same in every run",
            collapsed=bool(changed or partly),
        )
    return len(changed) + len(partly)


def _metrics(metrics: Sequence[Metric], labels: Sequence[str], page: Page, caption: str) -> None:
    """A row for each metric: its figure in each run, then the differences to the first."""
    others = [number for number in range(1, len(labels)) if any(number in metric.differences for metric in metrics)]
    has_relative = any(gap.relative is not None for metric in metrics for gap in metric.differences.values())
    columns = ["metric", *labels]
    for number in others:
        columns += [f"Δ {labels[number]}"] + [f"Δ {labels[number]}, %"] * has_relative
    rows: list[list[object]] = []
    for metric in metrics:
        row: list[object] = [metric.name]
        row += [metric.values.get(number, MISSING) for number in range(len(labels))]
        for number in others:
            gap = metric.differences.get(number)
            relative = None if gap is None or gap.relative is None else float(f"{100 * gap.relative:.3g}")
            row += [gap.absolute if gap else None] + [relative] * has_relative
        rows.append(row)
    many = len(rows) > MOST_OPEN_METRICS
    page.table(columns, rows, caption=caption, collapsed=many, interactive=many)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
