"""What a benchmark found: goals met or missed, and the tables that say so."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks.measure import Ratio, Side, Timings
from benchmarks.outcome import Figure, Outcome, Settings


@pytest.mark.parametrize(
    ("value", "better", "met"),
    [(1.9, "lower", True), (2.0, "lower", True), (2.1, "lower", False), (1.9, "higher", False)],
)
def test_a_goal_is_met_or_missed(value: float, better: str, met: bool) -> None:
    assert Figure("f", value, goal=2.0, better=better).met is met  # type: ignore[arg-type]
    assert Figure("f", value).met is None


def outcome() -> Outcome:
    found = Outcome("A title")
    sides = [Side("one", "floor", lambda: None), Side("other", "probekit", lambda: None)]
    timings = Timings({"one": [0.001, 0.002, 0.003], "other": [0.002, 0.004, 0.006]})
    found.time("work", sides, timings)
    found.figure("other / one", Ratio(2.0, 1.5, 12.25), goal=1.5)
    found.figures.append(Figure("growth", 0.125, unit="MiB"))
    found.notes.append("A note.")
    return found


def test_a_section_shows_figures_with_spread_and_goal_and_the_times_beside_them() -> None:
    assert outcome().markdown() == (
        "## A title\n"
        "\n"
        "| figure      | median    | 10 % – 90 %  | goal  | met    |\n"
        "| ----------- | --------- | ------------ | ----- | ------ |\n"
        "| other / one | 2 ×       | 1.500 – 12.2 | ≤ 1.5 | **no** |\n"
        "| growth      | 0.125 MiB |              |       |        |\n"
        "\n"
        "| work | side  | role     | median, ms | rounds |\n"
        "| ---- | ----- | -------- | ---------- | ------ |\n"
        "| work | one   | floor    | 2.00       | 3      |\n"
        "| work | other | probekit | 4.00       | 3      |\n"
        "\n"
        "A note.\n"
    )


def test_figures_are_written_down_with_the_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Settings] = []

    def run(settings: Settings) -> Outcome:
        asked.append(settings)
        return outcome()

    monkeypatch.setattr(program, "BENCHMARKS", {"one": run, "other": run})
    threads = torch.get_num_threads()
    try:
        program.main(["other", "--quick", "--threads", "1", "--output", str(tmp_path / "new" / "found.json")])
    finally:
        torch.set_num_threads(threads)
    document = json.loads((tmp_path / "new" / "found.json").read_text(encoding="utf-8"))
    assert asked == [Settings(quick=True)]
    assert document["benchmarks"] == {"other": asdict(outcome())}
    assert document["quick"] is True
    assert document["conditions"]["threads"] == 1
    assert {"date", "processor", "cores", "torch", "transformers", "probekit"} <= document["conditions"].keys()
    printed = capsys.readouterr().out
    page = tmp_path / "new" / "index.html"
    assert printed.endswith(f"{outcome().markdown()}\n{page}\n")
    assert "threads 1, " in printed
    assert "other / one" in page.read_text(encoding="utf-8")


def test_one_that_raises_does_not_end_the_others_and_the_status_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: Settings) -> Outcome:
        raise ValueError("no such thing")

    def leave(settings: Settings) -> Outcome:
        sys.exit("It needs a browser.")

    monkeypatch.setattr(program, "BENCHMARKS", {"one": fail, "two": leave, "three": lambda settings: outcome()})
    threads = torch.get_num_threads()
    output = tmp_path / "latest.json"
    try:
        with pytest.raises(SystemExit) as ended:
            program.main(["--quick", "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    assert ended.value.code == 1
    found = json.loads(output.read_text(encoding="utf-8"))["benchmarks"]
    assert found["one"]["failures"] == ["one raised ValueError: no such thing"]
    assert found["two"]["failures"] == ["two raised SystemExit: It needs a browser."]
    assert found["three"] == asdict(outcome())
    printed = capsys.readouterr()
    assert "**Failed**: one raised ValueError: no such thing" in printed.out
    assert "Traceback" in printed.err
    assert "no such thing" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_an_unknown_benchmark_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["layer-map"])
    assert ended.value.code == 2
    assert "there is no benchmark 'layer-map'; there are: layer-map-step, capture, " in capsys.readouterr().err
