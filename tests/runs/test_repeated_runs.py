"""Runs in one process leave nothing behind: no tensor, no object of ours, no thread, no open file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import probekit
from benchmarks.memory import counts
from benchmarks.process import TELLS

pytestmark = pytest.mark.skipif(not TELLS, reason="only Linux tells which files are open")
ANALYSES = ("gradient-inverter", "activation-statistics", "clamped-walk")
OPTIONS = {
    "gradient-inverter": {"steps": 2, "restarts": 2, "sites": "block.0"},
    "clamped-walk": {"steps": 2, "inner": [1]},
}


@pytest.mark.parametrize("profile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_five_runs_in_one_process_hold_no_more_than_two(
    profile: bool, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_gpt2()
    found = []
    for number in range(5):
        run = probekit.run(
            model, ANALYSES, "Once upon a time", OPTIONS, tmp_path / str(number), time_limit=60, profile=profile
        )
        assert run.status == "done", run.failures
        del run
        found.append(counts())
    assert found[2:] == [found[1]] * 3


def test_the_count_sees_what_stays(tiny_gpt2: Callable[..., Path]) -> None:
    model, kept = tiny_gpt2(), []
    before = counts()
    kept.append(probekit.load(model))
    with (model / "config.json").open() as file:
        kept.append(file)
        after = counts()
    assert all(after[name] > before[name] for name in ("tensors", "objects", "files"))
