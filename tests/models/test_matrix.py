"""Every precision on every placement, and the table in the documentation, which is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.between import between
from tests.models.matrix import CHECKS, CONVERTED, MARKERS, NOT_RUN, PLACEMENTS, PRECISIONS, Cell, cells, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "placement.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, Cell]]:
    return list(cells(tmp_path_factory.mktemp("matrix")))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cell(found: list[tuple[str, str, Cell]], precision: str, placement: str) -> None:
    [cell] = [each for which, where, each in found if (which, where) == (precision, placement)]
    if cell[CHECKS[0]] == NOT_RUN:
        pytest.skip("There is no CUDA device here.")
    assert {check: cell[check] for check in CHECKS} == dict.fromkeys(CHECKS, "equal")
    away = placement.partition(" + ")[2]
    assert (" and " in cell["devices"]) == bool(away)
    assert away in cell["devices"]
    if precision in ("int8", "nf4"):
        assert cell["quantised layers"] == ", ".join(f"{count} of {count}" for count in CONVERTED.values())


def test_the_table_in_the_documentation_is_what_was_measured(found: list[tuple[str, str, Cell]]) -> None:
    written = between(PAGE, MARKERS)
    assert _of_the_cpu(written) == _of_the_cpu(table(found)), "write it anew: python -m tests.models.matrix --markdown"


def _of_the_cpu(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith("|") and "cuda" not in line]
