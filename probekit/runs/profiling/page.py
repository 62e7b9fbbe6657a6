"""The page "Where time and memory went", drawn from what a profile wrote down: no model, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probekit.report import Page
from probekit.runs.profiling import sentences
from probekit.runs.profiling.steps import draw_look

TITLE = "Where time and memory went"
MIB = 2**20
# Loops that are shown; the table of all of them is in profile.json.
MOST_LOOPS = 25

NO_LOOK = (
    "Operators are not told: there was no loop of which some steps took long enough to be worth a look, and of which "
    "some were left then."
)

Part = Mapping[str, Any]


def draw(parts: Sequence[Part], processes: int = 1) -> Page:
    """The page of a profile: the answer, then a section for each process. Raises KeyError, TypeError or ValueError for
    what is no profile.
    """
    page = Page(TITLE)
    page.finding(sentences.of_time(parts))
    if remembered := sentences.of_memory(parts):
        page.finding(remembered)
    if advice := sentences.advice(parts):
        page.prose("\n\n".join(advice))
    if processes > len(parts):
        page.note(f"The run took {processes} processes, and {len(parts)} of them took a profile (--profile).")
    for number, part in enumerate(parts, start=1):
        if len(parts) > 1:
            page.heading(f"Process {number}, begun at {part['began']}")
        _phases(page, part)
        _loops(page, part)
        for look in part["looks"]:
            draw_look(page, look, part)
        if not part["looks"]:
            page.prose(NO_LOOK)
        _memory(page, part)
        _imports(page, part)
        for note in part["notes"]:
            page.note(str(note))
    page.note(sentences.of_itself(parts))
    return page


def _phases(page: Page, part: Part) -> None:
    whole = part["seconds"]
    has_cuda = any(phase["cuda"] for phase in part["phases"])
    columns = ["phase", "seconds", "share, %", "processor, s", "resident, MiB", "anonymous, MiB"]
    rows = [
        [
            phase["name"],
            round(phase["seconds"], 3),
            round(100 * phase["seconds"] / whole, 1),
            round(phase["cpu_seconds"], 3),
            *(_mib(phase[kind]) for kind in ("resident", "anonymous", "cuda")[: 2 + has_cuda]),
        ]
        for phase in part["phases"]
    ]
    most = [max(phase[kind] for phase in part["phases"]) for kind in ("resident", "anonymous", "cuda")]
    total = ["the whole", round(whole, 3), 100.0, round(sum(phase["cpu_seconds"] for phase in part["phases"]), 3)]
    page.chart(
        _bars(part), caption="Seconds by phase", description="A bar for each phase of the run, as long as it took"
    )
    page.table(
        columns + ["CUDA, MiB"] * has_cuda,
        [*rows, [*total, *map(_mib, most[: 2 + has_cuda])]],
        caption="Phases, in the order in which they began; importing counts to no other",
        remark="Processor time is that of all threads. Memory is the most that was there: all that is resident, and "
        "the part of it that no file backs (anonymous). A phase that is shorter than 0.02 s may have none.",
    )


def _bars(part: Part) -> dict[str, Any]:
    names = [phase["name"] for phase in part["phases"]]
    return {
        "data": {"values": [{"phase": each["name"], "seconds": round(each["seconds"], 4)} for each in part["phases"]]},
        "mark": "bar",
        "height": {"step": 22},
        "encoding": {
            "y": {"field": "phase", "type": "nominal", "sort": names, "title": None, "axis": {"labelLimit": 260}},
            "x": {"field": "seconds", "type": "quantitative", "title": "seconds"},
            "tooltip": [{"field": "phase"}, {"field": "seconds", "type": "quantitative"}],
        },
    }


def _loops(page: Page, part: Part) -> None:
    for kind, caption in (
        ("loop", "Loops, the longest first"),
        ("stage", "Stages, which are kept once done"),
    ):
        found = [span for span in part["spans"] if span["kind"] == kind and span["steps"]]
        spans = sorted(found, key=lambda span: -span["own_seconds"])
        if not spans:
            continue
        columns = ["analysis", kind, "steps" if kind == "loop" else "times", "seconds", "own"]
        rows: list[list[object]] = [
            [span["analysis"], span["label"], span["steps"], round(span["seconds"], 3), round(span["own_seconds"], 3)]
            for span in spans[:MOST_LOOPS]
        ]
        if kind == "loop":
            columns += ["ms a step: 10 %", "50 %", "90 %"]
            rows = [
                [*row, *(_ms(span[place]) for place in ("low", "median", "high"))]
                for row, span in zip(rows, spans, strict=False)
            ]
        hidden = len(spans) - len(rows)
        page.table(
            columns,
            rows,
            caption=caption,
            collapsed=kind == "stage" or len(rows) > 8,
            remark="Own: without the loops inside it, and without what the profile took."
            + (f" {hidden} more are in profile.json." if hidden else ""),
        )


def _memory(page: Page, part: Part) -> None:
    if part["memory"]:
        series = {
            name: [(round(point[0], 2), _mib(point[place])) for point in part["memory"]]
            for place, name in ((1, "resident"), (2, "anonymous"))
        }
        page.lines(series, x="second", y="MiB", caption="Memory since the profile began")
    if weights := part["weights"]:
        rows: list[list[object]] = [
            ["weights in memory", _mib(weights["in_memory"])],
            ["weights mapped from their file", _mib(weights["mapped"])],
            ["weights offloaded", _mib(weights["offloaded"])],
        ]
        rows = [row for row in rows if row[1] is not None]
        if "site" in weights:
            kept = f"what the gradient of one row of {weights['tokens']} tokens keeps up to {weights['site']}"
            rows.append([kept, float(f"{weights['kept_for_a_row'] / MIB:.3g}")])
        page.table(["what", "MiB"], rows, caption="Weights against activations")


def _imports(page: Page, part: Part) -> None:
    asked, own = part["imports"]["asked"], part["imports"]["own"]
    rows = [[name, round(seconds, 3), round(own.get(name, 0.0), 3)] for name, seconds in asked.items()]
    rows += [[name, None, round(seconds, 3)] for name, seconds in own.items() if name not in asked]
    rows = [row for row in rows if (row[1] or 0) >= 0.005 or (row[2] or 0) >= 0.005]
    if rows:
        page.table(
            ["package", "seconds, with what it imports", "seconds, by itself"],
            rows,
            caption="Packages that were imported",
            collapsed=True,
            remark="With what it imports: where probekit or a plugin asked for it first.",
        )


def _mib(size: float) -> float | None:
    return round(size / MIB, 1) if size else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{1e3 * seconds:.3g}")
