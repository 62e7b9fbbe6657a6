"""The exact inverter against its baselines: every side gives the prompts back, and what did not get there says so."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import exact_recovery, exactness, page
from benchmarks.exact_recovery import OURS, PAGE, SCAN, SEARCH, SIPIT, Task, against, against_page, cost
from benchmarks.outcome import Outcome, Series, Settings
from benchmarks.texts import FOLDER, cut, data, drawn


@pytest.fixture(scope="module")
def task() -> Task:
    subject = exact_recovery.untrained(1, 32, 50)
    return Task(subject, "block.0", drawn(subject, 2, 6))


def test_every_side_is_timed_and_gives_the_prompts_back(task: Task) -> None:
    outcome = Outcome("")
    timings = against(outcome, "tiny", task, (SIPIT, SCAN), 2, 0, {SIPIT: 10.0})
    assert set(timings.seconds) == {OURS, SEARCH, SIPIT, SCAN}
    assert not outcome.notes  # nothing was wrong
    assert all(one < whole for one, whole in zip(timings.seconds[SEARCH], timings.seconds[OURS], strict=True))
    figures = {figure.what: figure for figure in outcome.figures}
    assert [what for what, figure in figures.items() if figure.goal] == [f"tiny: {SIPIT} / {OURS}"]
    one, many = (figures[f"tiny: {SIPIT} / {OURS}, learnt for {count}"].value for count in ("1 prompt", "100 prompts"))
    assert one < many < figures[f"tiny: {SIPIT} / {OURS}"].value


def test_a_side_that_is_wrong_is_named(task: Task) -> None:
    outcome = Outcome("")
    task = Task(task.subject, task.site, task.prompts)
    task.prompts = task.prompts.flip(0)
    against(outcome, "tiny", task, (SIPIT,), 1, 0, {})
    assert outcome.notes == [f"tiny: {SIPIT} was not exact in 1 of 1 turns."]


def test_a_descent_that_does_not_get_there_gives_a_lower_bound(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_recovery, "PAGES", {"η = 1e-9": (1e-9, (20,))})
    outcome = Outcome("")
    timings = against(Outcome(""), "tiny", task, (), 1, 0, {})
    against_page(outcome, "tiny", task, timings, 5.0, 1e9)
    assert outcome.figures[0].what == f"tiny: at least, {PAGE}, η = 1e-9 / {OURS}"
    assert all(figure.goal is None for figure in outcome.figures)  # below the goal it says nothing about it
    assert "the ratio is a lower bound" in outcome.notes[0]


def test_a_descent_that_gets_there_is_held_to_the_goal(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_recovery, "PAGES", {"η = 0.002": (0.002, (300, 1000, 2000))})
    outcome = Outcome("")
    timings = against(Outcome(""), "tiny", task, (), 1, 0, {})
    against_page(outcome, "tiny", task, timings, 60.0, 1e9)
    assert outcome.figures[0].met is False
    assert "got there" in outcome.notes[0]


def test_cost_is_that_of_exact_recoveries(task: Task) -> None:
    figures = dict(zip(exact_recovery.COST, cost(task.subject, task.site, task.prompts), strict=True))
    assert figures["exact, %"] == 100
    assert figures["candidates a token"] >= 1
    assert all(value > 0 for value in figures.values())


@pytest.mark.slow
def test_the_quick_run_does_all_of_it_and_can_be_drawn(tmp_path: Path) -> None:
    outcome = exact_recovery.run(Settings(quick=True))
    assert not [note for note in outcome.notes if "not exact" in note]
    assert [len(series.rows) for series in outcome.series] == [1]
    figures = tmp_path / "latest.json"
    document = {"conditions": {"threads": 1}, "benchmarks": {"exact-recovery": asdict(outcome)}}
    figures.write_text(json.dumps(document), encoding="utf-8")
    page.main([str(figures)])
    drawn_page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "candidates a token, by length" in drawn_page
    assert SIPIT in drawn_page


def test_growth_is_a_table() -> None:
    shown = Series("by length", "tokens", ("ms",), [("demo", 10, [0.12345]), ("demo", 20, [2.0])]).markdown()
    assert shown.splitlines() == [
        "| by length | tokens | ms    |",
        "| --------- | ------ | ----- |",
        "| demo      | 10     | 0.123 |",
        "| demo      | 20     | 2     |",
    ]


def test_exactness_prints_a_row_for_each_block_and_writes_them_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    text = tmp_path / "texts" / "tinystories_197k.txt"
    text.parent.mkdir()
    text.write_text("Once upon a time there was a dog, and the dog was red. " * 8, encoding="utf-8")
    output = tmp_path / "exactness.json"
    chosen = ["--models", "demo,stories260k", "--texts", text.stem, "--dtypes", "fp32", "--blocks", "0"]
    exactness.main([*chosen, "--prompts", "2", "--output", str(output)])
    head, _, demo, absent = capsys.readouterr().out.splitlines()
    assert demo.startswith("| demo | fp32 | tinystories_197k | block.0 | 2 | 100 | 100 | 100 | 0 | 0 |")
    assert demo.count("|") == head.count("|")
    assert "there is no models/stories260k" in absent
    first, second = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert first["incomplete"] == []
    assert first["margin"] > first["bound"]
    assert second["error"].startswith("FileNotFoundError")


def test_prompts_are_as_long_as_asked(tmp_path: Path) -> None:
    subject = exact_recovery.trained("demo")
    assert subject is not None
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten " * 20, encoding="utf-8")
    assert cut(subject, text, 3, 7).shape == (3, 7)
    assert torch.equal(drawn(subject, 2, 5), drawn(subject, 2, 5))


def test_what_is_not_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert data("models/stories260k") is None
    assert exact_recovery.trained("stories260k") is None
