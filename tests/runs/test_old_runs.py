"""What the previous minor version wrote still opens: `written_by/0.1.0` was written by that version's own commands, and
lacks only the reports, which are drawn again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import probekit
from probekit.errors import UsageError
from probekit.runs import resume
from probekit.runs.verify import verify

if TYPE_CHECKING:
    from tests.conftest import Ended

OLD = Path(__file__).parent / "written_by" / "0.1.0"
RUNS = ["inverter-and-walks", "of-a-recording", "failed", "profiled"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_read_verified_and_drawn(name: str, old: Path, probekit_cli: Callable[..., Ended]) -> None:
    manifest = json.loads((old / name / "run.json").read_text())
    assert (manifest["schema"], manifest["versions"]["probekit"]) == (1, "0.1.0")
    run = probekit.read_run(old / name)
    done = [analysis for analysis, entry in manifest["analyses"].items() if entry["status"] == "done"]
    assert list(run.results) == done
    assert all(result.finding for result in run.results.values())
    assert verify(old / name).problems == []
    assert "the run is of probekit 0.1.0, and this is" in verify(old / name, recompute=True).problems[0]
    assert probekit_cli("report", str(old / name)).code == 0
    html = (old / name / "report.html").read_text()
    for analysis, entry in manifest["analyses"].items():
        assert analysis in html
        assert entry.get("error", "") in html


def test_old_runs_are_compared_listed_and_their_figures_saved(old: Path, probekit_cli: Callable[..., Ended]) -> None:
    runs = sorted(str(path) for path in (old / "study" / "cells").iterdir())
    assert probekit_cli("compare", *runs, "--output", str(old / "compared.html")).code == 0
    listing = json.loads(probekit_cli("runs", str(old), "--json").out)
    found = {(each["name"], each["kind"], each["status"]) for each in listing["entries"]}
    assert {("inverter-and-walks", "run", "done"), ("failed", "run", "failed")} <= found
    assert {("a-recording", "recording", "done"), ("study", "study", "done")} <= found
    assert probekit_cli("report", str(old / "profiled"), "--figures", str(old / "figures"), "--format", "csv").code == 0


def test_analyses_of_activations_run_on_an_old_recording(old: Path, tmp_path: Path) -> None:
    run = probekit.run(activations=old / "a-recording", plugins="activation-statistics", output=tmp_path / "new")
    assert run.status == "done"


def test_an_old_run_that_is_not_over_is_not_gone_on_with_by_another_version(old: Path) -> None:
    with pytest.raises(UsageError, match=r"probekit \(0\.1\.0 then, "):
        resume(old / "failed")


def test_a_run_of_a_version_to_come_is_refused_in_a_sentence(old: Path) -> None:
    file = old / "failed" / "run.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 3'))
    with pytest.raises(UsageError, match="has the schema 3, and this probekit reads 1 and 2"):
        probekit.read_run(old / "failed")
