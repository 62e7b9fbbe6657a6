"""The works that every side does, quickly: each has its tables, and nobody fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import capture, layer_map_step, precisions, restarts
from benchmarks.outcome import Outcome, Row, Settings
from benchmarks.restarts import RESTARTS
from benchmarks.shapes import SHAPES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("run", [layer_map_step.run, capture.run], ids=["a step", "capture"])
def test_every_shape_is_compared_at_one_block_and_at_all(run: Callable[[Settings], Outcome]) -> None:
    outcome = run(Settings(quick=True))
    assert outcome.failures == []
    assert len(outcome.comparisons) == 2 * len(SHAPES)
    assert all(row.value is not None or row.left_out.startswith("not installed") for row in rows_of(outcome))


def test_each_precision_is_compared_with_the_blocks_by_hand() -> None:
    outcome = precisions.run(Settings(quick=True))
    assert [comparison.work.partition(",")[0] for comparison in outcome.comparisons] == 2 * ["bfloat16"] + 2 * ["int8"]
    assert all(row.result == "bit for bit" for row in rows_of(outcome) if row.role != "floor")


def test_restarts_are_compared_with_one_with_the_matrix_products_and_between_sides() -> None:
    outcome = restarts.run(Settings(quick=True))
    assert outcome.failures == []
    start = f"{RESTARTS} restarts / 1 restart: "
    assert [figure.what for figure in outcome.figures] == [
        start + way for way in ("probekit", "by hand", restarts.PRODUCTS)
    ]
    assert len(outcome.comparisons) == 1


def rows_of(outcome: Outcome) -> list[Row]:
    return [row for comparison in outcome.comparisons for row in comparison.rows]
