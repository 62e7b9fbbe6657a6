"""How many rows are computed at once changes each of them by rounding alone; and the measure of it sees more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import probekit
from benchmarks.batch_size import ANALYSES, ROWS, differences, found
from benchmarks.outcome import Outcome, Series
from probekit_plugins.batches import notes_on_rows

# After some steps, of a model of random weights: rounding grows from step to step.
BOUNDS = {"float32": 1e-4, "float64": 1e-11, "bfloat16": 0.3, "int8": 0.5}
QUICK = {
    "gradient-inverter": {"sites": "block.1", "steps": 6, "restarts": 3, "next_token": False},
    "clamped-walk": {"sites": "block.1", "steps": 2, "walkers": 3, "noise_draws": 1},
    "orthogonal-walk": {"sites": "block.1", "steps": 2, "walkers": 3, "noise_draws": 1},
}


def greatest(model: Path, precision: str, name: str, options: dict[str, Any]) -> tuple[float, float]:
    """The greatest difference, and the greatest share of other tokens, of 1, 2 and 3 rows at once to all."""
    how: dict[str, Any] = {"quantization": "int8"} if precision == "int8" else {"dtype": precision}
    subject = probekit.load(model, **how)
    expected = found(subject, name, options, None, 2)
    each = [differences(found(subject, name, options, rows, 2), expected) for rows in ROWS]
    return max(figure for figure, _ in each), max(share for _, share in each)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", QUICK)
def test_rows_at_once_change_nothing_but_rounding(name: str, precision: str, tiny_gpt2: Callable[..., Path]) -> None:
    difference, tokens = greatest(tiny_gpt2(), precision, name, QUICK[name])
    assert difference < BOUNDS[precision]
    assert tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", ["gradient-inverter", "clamped-walk", "orthogonal-walk", "null-space-walk"])
def test_rows_at_once_change_little_on_the_embedded_model(name: str, precision: str) -> None:
    difference, _ = greatest(Path("demo"), precision, name, {**ANALYSES[name], "steps": 2})
    assert difference < BOUNDS[precision]


def test_of_int8_a_note_says_that_rows_influence_each_other(tiny_gpt2: Callable[..., Path]) -> None:
    assert "influence each other" in notes_on_rows(probekit.load(tiny_gpt2(), quantization="int8"))[0]
    assert notes_on_rows(probekit.load(tiny_gpt2())) == []


def result(losses: list[float], ids: list[int], embeddings: list[float]) -> probekit.Result:
    tensors = {
        "losses": numpy.array(losses),
        "discrete_losses": numpy.array([1e-15]),
        "embeddings": numpy.array(embeddings),
    }
    sequence = probekit.TokenSequence(ids, [str(index) for index in ids])
    return probekit.Result(tensors=tensors, sequences={"recovered": [sequence]})


def test_the_measure_is_relative_to_the_greatest_entry_and_leaves_out_what_is_rounding() -> None:
    expected = result([8.0, 4.0], [1, 2, 3, 4], [2.0, 0.0])
    assert differences(expected, expected) == (0.0, 0.0)
    assert differences(result([8.0, 5.0], [1, 2, 3, 4], [2.0, 0.0]), expected) == (1 / 8, 0.0)
    assert differences(result([8.0, 4.0], [1, 7, 3, 4], [2.0, 1.0]), expected) == (0.5, 25.0)
    nothing = result([8.0, 4.0], [1, 2, 3, 4], [2.0, 0.0])
    nothing.tensors["discrete_losses"] = numpy.array([2e-15])
    assert differences(nothing, expected) == (0.0, 0.0)
    nothing.tensors["losses"] = numpy.array([8.0])
    assert differences(nothing, expected) == (1.0, 0.0)


def test_a_series_tells_bits_from_rounding() -> None:
    outcome = Outcome("Rows at once", series=[Series("float32", "rows at once", ["difference"], [("a", 1, [0.0])])])
    assert "| 0 " in outcome.markdown()
