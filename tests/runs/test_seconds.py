"""Times that an analysis measures itself: in `timings.json` alone, and with the result again wherever it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs import execute, resolve

SOURCE = """
import json
import time
from pathlib import Path

import probekit

class Timed(probekit.Analysis[probekit.Options]):
    \"\"\"Two times.\"\"\"
    name = "timed"
    measured = {"walk": 1.5, "check": 0.25}

    def run(self, subject, prompts):
        return probekit.Result(finding="Timed.", metrics={"figure": 1.0}, seconds=dict(self.measured))

    def report(self, result, page):
        page.prose(json.dumps(result.seconds))

class Failing(probekit.Analysis[probekit.Options]):
    \"\"\"Fails as long as it is told to.\"\"\"
    name = "failing"
    fails = True

    def run(self, subject, prompts):
        if self.fails:
            raise RuntimeError("not yet")
        return probekit.Result(finding="Done.")

    def report(self, result, page):
        pass

@probekit.hookimpl
def probekit_analyses():
    return [Timed, Failing]
"""
SECONDS = {"walk": 1.5, "check": 0.25}


@pytest.fixture
def begin(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> Callable[..., probekit.Run]:
    """A run of these analyses."""
    install_plugin("timed", SOURCE)
    model = tiny_gpt2()

    def run(*analyses: str) -> probekit.Run:
        plugins = probekit.Plugins()
        values = {"model": {"name": str(model)}, "plugins": list(analyses), "prompts": ["Once"]}
        return execute(resolve([("test", values)], plugins), plugins, tmp_path / "run")

    return run


def kind(name: str) -> Any:
    return probekit.Plugins().analysis(name)


def timings(run: probekit.Run) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run.path / "timings.json").read_text(encoding="utf-8"))
    return document


def test_times_are_kept_apart_from_the_result_and_read_back_with_it(begin: Callable[..., probekit.Run]) -> None:
    run = begin("timed")
    folder = run.path / "analyses" / "timed"
    assert "walk" not in (folder / "result.json").read_text(encoding="utf-8")
    assert timings(run)["parts"] == {"timed": SECONDS}
    assert timings(run)["analyses"]["timed"] > 0
    assert run.result.seconds == probekit.read_run(run.path).result.seconds == SECONDS
    assert json.dumps(SECONDS).replace('"', '\\"') in (folder / "page.json").read_text(encoding="utf-8")


def test_a_result_without_times_leaves_none(begin: Callable[..., probekit.Run]) -> None:
    run = begin("pseudo-inverse")
    assert "parts" not in timings(run)
    assert run.result.seconds == {}


def test_a_resumed_run_keeps_the_times_of_what_was_done(
    begin: Callable[..., probekit.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin("timed", "failing")
    assert run.status == "failed"
    monkeypatch.setattr(kind("failing"), "fails", False)
    again = probekit.resume(run.path)
    assert again.status == "done"
    assert again.results["timed"].seconds == SECONDS
    assert timings(again)["parts"] == {"timed": SECONDS}
    assert {"timed", "failing"} <= set(timings(again)["analyses"])


def test_without_the_file_of_times_a_run_is_read_without_them(begin: Callable[..., probekit.Run]) -> None:
    run = begin("timed")
    (run.path / "timings.json").unlink()
    assert probekit.read_run(run.path).result.seconds == {}


@pytest.mark.parametrize("damage", ["{", '{"parts": {"timed": 5}}'])
def test_damaged_times_are_named(damage: str, begin: Callable[..., probekit.Run]) -> None:
    run = begin("timed")
    (run.path / "timings.json").write_text(damage, encoding="utf-8")
    with pytest.raises(probekit.UsageError, match=r"timings\.json' is damaged"):
        probekit.read_run(run.path)


def test_a_time_that_is_no_number_ends_the_analysis_with_a_sentence(
    begin: Callable[..., probekit.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind("timed"), "measured", {"walk": float("nan")})
    assert "The time 'walk' is nan" in begin("timed").failures["timed"]
