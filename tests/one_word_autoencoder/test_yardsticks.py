"""What has to come back of uniformly random texts of 32 tokens: a GPT-2 of 3 layers and width 64, one vector.

Minutes in all. The fast versions, with controls that must fail, are among the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from tests.one_word_autoencoder.small import RANDOM, gpt2, run

pytestmark = pytest.mark.slow
ENOUGH: dict[str, Any] = RANDOM | {"pieces": 60_000, "held_out": 0.01, "measured": 512, "seeds": 3}


def worst(**options: Any) -> dict[str, float]:
    """The least exact of all seeds, and the greatest of its controls; with the mean cosine."""
    rows = run(gpt2(), **ENOUGH | options).tables["trained"]
    assert len(rows) == 3
    return {
        "exact": min(row["exact"] for row in rows),
        "shuffled": max(row["exact_shuffled"] for row in rows),
        "untrained": max(row["exact_untrained"] for row in rows),
        "cosine": max(abs(row["cosine"]) for row in rows),
    }


def test_four_tokens_come_back_from_one_vector() -> None:
    found = worst(length=4, steps=800)
    assert found["exact"] >= 0.99
    assert found["shuffled"] == found["untrained"] == 0


def test_six_tokens_come_back_from_one_vector() -> None:
    assert worst(length=6, steps=1200, learning_rate=3e-3, pieces=90_000)["exact"] >= 0.96


def test_two_segments_of_two_tokens_come_back_from_the_last_vector() -> None:
    found = worst(length=4, segment=2, continuation=0, steps=500)
    assert found["exact"] >= 0.9
    assert found["shuffled"] == 0


def test_four_segments_of_two_tokens_come_back_from_the_last_vector() -> None:
    assert worst(length=8, segment=2, continuation=0, steps=1600, pieces=110_000)["exact"] >= 0.9


def test_info_nce_makes_the_vectors_orthogonal_and_costs_no_text() -> None:
    found = worst(length=4, steps=800, repulsion="info-nce")
    assert found["exact"] >= 0.97
    assert found["cosine"] < 0.05


def test_the_coding_rate_as_printed_leaves_nothing() -> None:
    found = worst(length=4, steps=800, repulsion="coding-rate-as-printed")
    assert found["cosine"] > 0.99
    assert found["exact"] == 0


def test_the_vectors_of_a_segment_tell_the_next_one_where_it_is_repeated(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    """Texts `a b a b`: with the vectors of `a b` the second half is known, without them it is not."""
    subject = probekit.load(str(tiny_gpt2()))
    letters = "abcdefgh"
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(2 * (a + b) for a in letters for b in letters), encoding="utf-8")
    options = {"texts": str(file), "segment": 2, "steps": 800, "batch": 32, "learning_rate": 4e-3, "seeds": 1}
    [row] = run(subject, **options | {"held_out": 0.1}).tables["memory"]
    assert row["memory"] < 0.5
    assert row["another text's memory"] > row["memory"] + 1
    assert row["no memory"] > row["memory"] + 1
    assert row["no memory"] > row["truncation"]
