"""The figures of a saved result follow from its tensors and token sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.directory import RunDirectory
from probekit.runs.recompute import recompute
from probekit_plugins.one_word_autoencoder import OneWordAutoencoder, OneWordAutoencoderOptions
from tests.analyses.recomputing import assert_figures_follow

SMALL: dict[str, Any] = {"steps": 2, "batch": 4, "length": 5, "texts": "random", "held_out": 0.3, "pieces": 40}
OPTIONS: dict[str, dict[str, Any]] = {
    "each repulsion": {"repulsion": ["none", "coding-rate"], "vectors": [2, 1], "seeds": 1},
    "segments, many lengths": {"segment": 2, "length": 12, "shortest": 1, "seeds": 2},
}


def run(folder: Path, output: Path, **options: Any) -> None:
    given = {**SMALL, **options}
    ended = probekit.run(str(folder), plugins=["one-word-autoencoder"], prompts=["The"], options=given, output=output)
    assert ended.failures == {}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_figure_follows_from_what_was_measured(kind: str, tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run(tiny_gpt2(), tmp_path / "run", **OPTIONS[kind])
    assert_figures_follow(tmp_path / "run", "one-word-autoencoder")


def test_a_text_that_did_not_come_back_as_it_is_saved_is_found(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run(tiny_gpt2(), tmp_path / "run", seeds=1)
    saved = RunDirectory.open(tmp_path / "run").result("one-word-autoencoder")
    saved.tensors["decoded/1 vector, seed 0"][:] = saved.tensors["texts/wanted"]
    found = recompute(OneWordAutoencoder(OneWordAutoencoderOptions(**{**SMALL, "seeds": 1})), saved)
    assert any(each.startswith("the metric '1 vector/exact' is 0.0, recomputed 1.0") for each in found.different)
    assert any("by_surprisal" in each for each in found.different)
    assert any("the finding" in each for each in found.different)
