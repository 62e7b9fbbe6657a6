"""The strong settings on models that are not like the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import probekit
from tests.forward.tiny import named

LONG, SHORT = [25, 37, 23, 64, 29], [70, 28, 41]


def run(name: str, *prompts: list[int], **options: Any) -> probekit.Result:
    subject = probekit.Subject(named(name))
    kind = probekit.Plugins().analysis("gradient-inverter")
    small = {"settings": "strong", "steps": 10, "restarts": 2, "sites": "block.0,block.-1", "rescore": 4}
    analysis = kind(kind.options_model(**{**small, **options}))
    ids = [subject.check_ids(prompt) for prompt in prompts]
    result: probekit.Result = analysis.run(subject, [probekit.Prompt("", each, subject.tokens(each)) for each in ids])
    analysis.report(result, probekit.Page("gradient-inverter"))
    return result


@pytest.mark.parametrize("name", ["gemma3n_text", "mllama", "moshi", "mamba", "bloom", "rwkv"])
def test_prompts_of_two_lengths_are_rescored_and_compared(name: str) -> None:
    result = run(name, LONG, SHORT)
    for key, value in result.metrics.items():
        if "accuracy" in key:
            assert value is not None
            assert 0 <= float(value) <= 1
    sites = {str(row["site"]) for row in result.tables["restarts"]}
    assert len(sites) >= 1
    for site in sites:
        assert bool(torch.isfinite(result.tensors[f"0/{site}/losses"]).all())


def test_a_model_that_does_not_look_back_only_is_rescored() -> None:
    """Its prompts are of one length: it lets padding change them."""
    result = run("cpmant", LONG, LONG[::-1], sites="block.0")
    losses = [
        (float(row["rescored_discrete_loss"] or 0), float(row["discrete_loss"] or 0))
        for row in result.tables["restarts"]
    ]
    assert all(rescored <= plain for rescored, plain in losses)


def test_where_no_token_belongs_to_a_position_a_warm_start_is_refused_and_rescoring_is_not() -> None:
    with pytest.raises(probekit.AnalysisError, match="no token belongs to one"):
        run("blt", LONG, sites="block.1")
    rows = run("blt", LONG, sites="block.1", start="noise").tables["restarts"]
    assert all(row["rescored_discrete_loss"] is not None for row in rows)


def test_blocks_that_read_ids_are_given_the_candidates_own() -> None:
    """With every token a candidate, the sweep finds the prompt without having been given its ids."""
    result = run("gemma3n_text", LONG, sites="block.0", rescore=200, steps=1)
    assert result.metrics["block.0/rescored_exact_rate"] == 1
