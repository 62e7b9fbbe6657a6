"""The figures of a saved result follow from its tensors and token sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.directory import RunDirectory
from probekit.runs.recompute import recompute
from probekit_plugins.text_vae import TextVae, TextVaeOptions
from tests.analyses.recomputing import assert_figures_follow

SMALL: dict[str, Any] = {
    "steps": 4,
    "batch": 4,
    "length": 5,
    "latent": 3,
    "importance_samples": 2,
    "texts": "random",
    "pieces": 30,
    "held_out": 0.3,
    "interpolation_steps": 3,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "all that stands beside": {"seeds": 2, "beside": ["no-z", "lstm", "autoencoder", "collapsed"], "free_bits": [0, 1]},
    "a T5, no phase 1, no examples": {
        "seq2seq": "t5:layers=1,width=16,heads=2",
        "pretraining": 0,
        "beside": ["no-z"],
        "examples": 0,
    },
}


def run(folder: Path, output: Path, **options: Any) -> None:
    given = {**SMALL, **options}
    ended = probekit.run(str(folder), plugins=["text-vae"], prompts=["The"], options=given, output=output)
    assert ended.failures == {}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_figure_follows_from_what_was_measured(kind: str, tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run(tiny_gpt2(n_layer=1), tmp_path / "run", **OPTIONS[kind])
    assert_figures_follow(tmp_path / "run", "text-vae")


def test_a_likelihood_that_is_not_the_saved_one_is_found(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run(tiny_gpt2(n_layer=1), tmp_path / "run", beside=[], examples=1)
    saved = RunDirectory.open(tmp_path / "run").result("text-vae")
    saved.tensors["nll_given_z/λ=0.5, seed 0"][1] += 1
    saved.tensors["examples/λ=0.5"] = saved.tensors["texts"][:1]
    found = recompute(TextVae(TextVaeOptions(**{**SMALL, "beside": [], "examples": 1})), saved)
    wrong = ("the metric 'delta_rec'", "the table 'settings'", "the table 'trained'", "the table 'reconstructions'")
    assert all(any(each.startswith(what) for each in found.different) for what in wrong)
    assert not any("'ppl'" in each for each in found.different)
