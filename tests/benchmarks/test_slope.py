"""The line through memory over time: its slope, and an error that says whether it is more than noise."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("torch")

from benchmarks.memory import fitted


def test_a_line_without_noise_has_its_slope_and_no_error() -> None:
    line = fitted([3.0 + 0.5 * place for place in range(50)])
    assert line.slope == pytest.approx(0.5)
    assert line.error == pytest.approx(0, abs=1e-9)


def test_noise_around_a_level_is_told_from_growth() -> None:
    draw = random.Random(0)
    within = 0
    for _ in range(200):
        flat = fitted([draw.gauss(0, 1) for _ in range(90)])
        within += abs(flat.slope) <= 2 * flat.error
    # Two standard errors leave out one in twenty; widened by chance correlations, less.
    assert within >= 180
    grows = fitted([draw.gauss(0, 1) + 0.05 * place for place in range(90)])
    assert grows.slope > 2 * grows.error
    assert grows.slope == pytest.approx(0.05, abs=3 * grows.error)


def test_windows_that_are_like_their_neighbours_do_not_count_as_so_many() -> None:
    draw = random.Random(1)
    independent = [draw.gauss(0, 1) for _ in range(20)]
    alike = [value for value in independent for _ in range(5)]
    assert 5 * fitted(alike).error >= 0.8 * fitted(independent).error


def test_two_values_have_no_error() -> None:
    with pytest.raises(ValueError, match="at least three"):
        fitted([1.0, 2.0])
