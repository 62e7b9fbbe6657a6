"""How long a report takes to open in a browser, and how large it is: that of a large run against a short one's.

Headless Chromium opens each from disk, in a fresh tab, by turns. A page can be read when it is laid out (its `load`
event); its charts are drawn after that.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.large_report import LAYERS, STEPS, TOKENS, large_document
from benchmarks.measure import Side, alternate, percentile
from benchmarks.outcome import Figure, Outcome, Settings
from probekit.report import Document, Page, render_html

MOST_MEGABYTES = 5.0
MOST_SECONDS = 2.0
OPENED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
DRAWN = "document.documentElement.dataset.charts === 'drawn'"


def short_document() -> Document:
    """One chart and a few tokens: what every report costs."""
    page = Page("Short")
    page.finding("A short report.")
    page.lines({"restart 0": [(step, 1 / (step + 1)) for step in range(50)]})
    return Document("Short", "How long does any report take?", pages=[("short", page)])


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium. Raises SystemExit with a sentence without one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        sys.exit("The benchmark `report` needs playwright and a chromium on PATH; install them, or name others.")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def opening(running: Any, path: Path, loads: list[float]) -> Callable[[], None]:
    """Open a report in a fresh tab until its charts are drawn, and note after how many seconds it could be read."""

    def open_one() -> None:
        tab = running.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(path.as_uri())
        loads.append(tab.evaluate(OPENED) / 1e3)
        while not tab.evaluate(DRAWN):
            tab.wait_for_timeout(10)
        tab.close()

    return open_one


def run(settings: Settings) -> Outcome:
    """Open both by turns."""
    outcome = Outcome(f"The report of a large run: {TOKENS} tokens × {LAYERS} layers × {STEPS} steps")
    loads: dict[str, list[float]] = {"large": [], "short": []}
    rounds = settings.rounds(15)
    with tempfile.TemporaryDirectory() as folder, browser() as running:
        sides = []
        for name, document in (("large", large_document()), ("short", short_document())):
            path = Path(folder) / f"{name}.html"
            path.write_text(render_html(document), encoding="utf-8")
            if name == "large":
                size = path.stat().st_size / 1e6
                outcome.figures.append(Figure("size of the large report", size, unit="MB", goal=MOST_MEGABYTES))
            sides.append(Side(name, "probekit", opening(running, path, loads[name])))
        timings = alternate(sides, rounds, warmup=1)
    outcome.time("open and draw every chart", sides, timings)
    for name, goal in (("large", MOST_SECONDS), ("short", None)):
        seconds = loads[name][-rounds:]  # without the warm-up
        low, high = percentile(seconds, 10), percentile(seconds, 90)
        outcome.figures.append(
            Figure(f"time until the {name} one can be read", median(seconds), low, high, unit="s", goal=goal)
        )
    outcome.figure("large / short, until every chart is drawn", timings.ratio("large", "short"))
    return outcome
