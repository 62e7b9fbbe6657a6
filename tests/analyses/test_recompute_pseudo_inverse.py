"""Every figure of the decoders comes out again from margins and decoded tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.recompute import recompute
from probekit_plugins.pseudo_inverse import PseudoInverse, PseudoInverseOptions
from tests.analyses.recomputing import assert_figures_follow


def run(model: Path, output: Path, **options: Any) -> probekit.Run:
    prompts = ["The sky is blue.", "Once upon a time, there was a girl."]
    return probekit.run(model=str(model), plugins=["pseudo-inverse"], prompts=prompts, options=options, output=output)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"margins": False, "decoders": ["unembedding"], "sites": "block.1"},
        {"decoders": ["cosine"], "sites": "transformer.h.0.attn.c_attn"},
    ],
    ids=["all", "lens", "margins"],
)
def test_every_figure_follows_from_what_was_measured(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    run(tiny_gpt2(), tmp_path / "run", **options)
    assert_figures_follow(tmp_path / "run", "pseudo-inverse")


def test_a_margin_that_was_changed_no_longer_says_what_the_tables_say(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    saved = run(tiny_gpt2(), tmp_path / "run", sites="block.1", decoders=["nearest"]).result
    saved.tensors["margins/nearest"][7] = -9.0
    found = recompute(PseudoInverse(PseudoInverseOptions(sites="block.1", decoders=["nearest"])), saved)
    told = " ".join(found.different)
    for figure in ("'nearest/round_trip_rate'", "'nearest/margin_min'", "row 0, column 'id'", "the finding"):
        assert figure in told
