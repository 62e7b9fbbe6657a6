"""Loading to read one block: every side reads the same, and its time and memory are noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import loading
from benchmarks.loading import LEFT_OUT, Loaded, first_loads
from benchmarks.outcome import Settings
from benchmarks.process import TELLS


@pytest.mark.skipif(not TELLS, reason="only Linux tells")
def test_every_side_that_is_installed_reads_the_same() -> None:
    outcome = loading.run(Settings(quick=True))
    assert outcome.failures == []
    [comparison] = outcome.comparisons
    rows = {row.side: row for row in comparison.rows}
    assert comparison.floor == "config cut by hand"
    assert rows["probekit"].result == "bit for bit"
    assert {side: rows[side].left_out for side in LEFT_OUT} == LEFT_OUT
    timed = {side for side, row in rows.items() if row.value is not None}
    assert timed >= {"config cut by hand", "probekit", "probekit, whole", "transformers, whole"}
    assert {figure.what.partition(":")[0] for figure in outcome.figures} == timed


def coming_to(values: dict[int, float]) -> Callable[..., Loaded]:
    def apart(way: int, **_: Any) -> Loaded:
        if way not in values:
            raise OSError("no such file")
        return Loaded(1.0, 2.0, 3.0, torch.tensor([1.0, values[way]]))

    return apart


def test_a_side_that_reads_something_else_or_fails_is_left_out() -> None:
    rows, loads = first_loads(coming_to({0: 1.0, 1: 1.0, 2: 1.5}))
    assert [row.left_out for row in rows[:4]] == ["", "", "other results: 0.5 apart", "failed: OSError: no such file"]
    assert [row.failed for row in rows[:4]] == [False, False, True, True]
    assert rows[1].side in loads
    with pytest.raises(OSError, match="no such file"):
        first_loads(coming_to({0: 1.0}))  # probekit is no peer


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = loading.Way("peer", "peer", loading.by_nnsight, "no-such-package")
    monkeypatch.setattr(loading, "WAYS", (*loading.WAYS[:2], absent))
    rows, _ = first_loads(coming_to({0: 1.0, 1: 1.0}))
    assert rows[2].left_out == "not installed; `pip install no-such-package` adds it"
    assert not rows[2].failed
