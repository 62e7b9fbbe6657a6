import math
from decimal import Decimal

import numpy
import pytest
import torch

from probekit.report.figures import cell, column, figure, number


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, numpy.float32("nan"), torch.tensor(math.inf), None])
def test_what_is_not_finite_is_absent(value: object) -> None:
    assert number(value) is None
    assert figure(cell(value)) == "–"


@pytest.mark.parametrize("value", [2.5, numpy.float16(2.5), numpy.array([2.5]), torch.tensor(2.5), Decimal("2.5")])
def test_numbers_of_every_library_become_plain_floats(value: object) -> None:
    assert type(number(value)) is float
    assert number(value) == 2.5


def test_integers_stay_integers() -> None:
    assert [type(number(value)) for value in (3, numpy.int64(3), torch.tensor(3), True)] == [int] * 4


@pytest.mark.parametrize("value", ["2.5", object(), [1.0]])
def test_what_is_not_a_number_is_refused_with_a_sentence(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number or None"):
        number(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (-0.5, "−0.5"),
        (12345.678, "12346"),
        (1.5e-7, "1.5e-7".replace("-", "−")),
        (3e12, "3e12"),
        (0.0, "0"),
        (50256, "50256"),
        (True, "yes"),
        ("\u202e", "⟨U+202E⟩"),
    ],
)
def test_a_figure_has_the_digits_a_reader_needs(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_the_decimals_of_a_column_line_up_around_what_is_absent() -> None:
    assert column([0.5, 0.125, None, 1.0]) == ["0.500", "0.125", "–", "1.000"]
    assert column([24.6, 0.9123]) == ["24.600", "0.912"]
    assert column([24.6, 0.001234]) == ["24.6", "0.001234"]
    assert column([3, 10]) == ["3", "10"]
    assert column([0.0001234, 1e-9]) == ["0.0001234", "1e−9"]
