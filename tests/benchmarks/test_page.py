"""The page of the figures: all of them, what was left out and why, and whether the goals were met."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from benchmarks.outcome import Comparison, Figure, Outcome, Row


def document() -> dict[str, Any]:
    rows = [
        Row("by hand", "floor", "", 1.0, 1.0, 1.0, 5.125, 7),
        Row("probekit", "probekit", "bit for bit", 1.011, 0.901, 1.123, 5.25, 7, goal=1.05),
        Row("slow <peer>", "peer", "within 1e-07", 31.5, 30.25, 33.75, 160.5, 7),
        Row("other peer", "peer", left_out="not possible: it has no gradient"),
    ]
    timed = Outcome("A step", [Comparison("one block", "by hand", rows)])
    timed.figures.append(Figure("growth", 12.375, 11.5, 13.25, unit="MiB", goal=10))
    timed.sides.append({"work": "w", "side": "s", "role": "peer", "rounds": 3, "median_ms": 77.5})
    timed.notes.append("A note of its own.")
    broken = Outcome("broken", failures=["broken raised ValueError: no such thing"])
    found = {"step": asdict(timed), "broken": asdict(broken)}
    return {"conditions": {"processor": "a chip", "pyvene": "not installed"}, "quick": True, "benchmarks": found}


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))


def test_every_figure_is_on_the_page() -> None:
    text = text_of(page.html(document()))
    for shown in ("1.011 ×", "0.901 – 1.123", "5.25", "31.5 ×", "30.2 – 33.8", "160.50", "12.4 MiB", "77.5"):
        assert shown in text, shown
    for shown in (
        "a chip",
        "not installed",
        "bit for bit",
        "within 1e-07",
        "A note of its own.",
        "one block: 7 rounds",
    ):
        assert shown in text, shown


def test_what_failed_and_who_was_left_out_is_said() -> None:
    text = text_of(page.html(document()))
    assert "broken raised ValueError: no such thing" in text
    assert "1 of 2 goals are met. 1 failed." in text
    left_out = text.index("Left out")
    assert left_out < text.index("other peer", left_out) < text.index("not possible: it has no gradient", left_out)


def test_names_are_escaped_and_nothing_is_loaded() -> None:
    html = page.html(document())
    assert "slow <peer>" not in html
    assert "default-src 'none'" in html.replace("&#39;", "'")


def test_the_chart_has_a_mark_for_each_side_that_was_timed() -> None:
    [comparison] = page.comparisons_of(document()["benchmarks"]["step"])
    spec = page.ratio_chart([comparison])
    assert [(value["side"], value["ratio"]) for value in spec["data"]["values"]] == [
        ("probekit", 1.011),
        ("slow <peer>", 31.5),
    ]


def test_figures_that_lack_what_was_added_later_are_drawn() -> None:
    older = document()
    for outcome in older["benchmarks"].values():
        for added in ("comparisons", "failures"):
            del outcome[added]
    assert "12.4 MiB" in text_of(page.html(older))


def test_the_page_is_beside_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "latest.json"
    figures.write_text(json.dumps(document()), encoding="utf-8")
    page.main([str(figures)])
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page.html(document())
