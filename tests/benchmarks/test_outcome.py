"""What a benchmark found: goals met or missed, and the tables that say so."""

from __future__ import annotations

import json
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
    assert printed.endswith(outcome().markdown() + "\n")
    assert "threads 1, " in printed


def test_an_unknown_benchmark_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["layer-map"])
    assert ended.value.code == 2
    assert "there is no benchmark 'layer-map'; there are: layer-map-step, restarts, " in capsys.readouterr().err
