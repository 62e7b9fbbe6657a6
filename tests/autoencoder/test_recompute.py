"""The figures of a saved result follow from its tensors and token sequences."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.directory import RunDirectory
from probekit.runs.recompute import recompute
from probekit_plugins.autoencoder import Autoencoder, AutoencoderOptions
from tests.analyses.recomputing import assert_figures_follow
from tests.analyses.recovering import few_samples
from tests.autoencoder.test_run import prompts

SPARSE = ["topk"] if importlib.util.find_spec("sae_lens") else []
SMALL: dict[str, Any] = {"steps": 4, "batch": 32, "seeds": 2, "sites": "block.1", "splice_tokens": 40, "widths": [3]}
OPTIONS: dict[str, dict[str, Any]] = {
    "every kind of code, labelled, and what survives": {
        "variants": ["plain", "variational", "contrastive", *SPARSE],
        "active": [2],
        "features": 40,
        "labels": "position",
        "invert": 2,
        "invert_tokens": 4,
        "seeds": 1,
    },
    "pairs of sites": {"variants": ["contrastive", "plain"], "views": "sites", "sites": "block.0,block.1"},
    "halves of documents": {"variants": ["contrastive"], "views": "segments", "labels": "document"},
}


def run(folder: Path, output: Path, **options: Any) -> None:
    given = {**SMALL, **options}
    ended = probekit.run(str(folder), plugins=["autoencoder"], prompts=prompts(30), options=given, output=output)
    assert ended.failures == {}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_figure_follows_from_what_was_measured(
    kind: str, tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_samples(monkeypatch)
    run(tiny_gpt2(), tmp_path / "run", **OPTIONS[kind])
    assert_figures_follow(tmp_path / "run", "autoencoder")


def test_an_autoencoder_that_was_saved_before_has_figures_that_follow(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    run(tiny_gpt2(), tmp_path / "first", variants=["plain", *SPARSE], active=[2], features=40, seeds=1)
    folders = sorted((tmp_path / "first/analyses/autoencoder/files/block.1").iterdir())
    run(tiny_gpt2(), tmp_path / "run", saved=list(map(str, folders)), seeds=1)
    assert_figures_follow(tmp_path / "run", "autoencoder")


def test_errors_that_are_not_the_saved_ones_are_found(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run(tiny_gpt2(), tmp_path / "run", seeds=1)
    saved = RunDirectory.open(tmp_path / "run").result("autoencoder")
    saved.tensors["squared_errors/block.1/plain-3-seed0"] *= 0.5
    found = recompute(Autoencoder(AutoencoderOptions(**{**SMALL, "seeds": 1})), saved)
    wrong = ("the metric 'block.1/plain-3/fve'", "the table 'trained'", "the table 'settings'", "the finding")
    assert all(any(each.startswith(what) for each in found.different) for what in wrong)
    assert not any("fve_shuffled" in each or "loss_recovered" in each for each in found.different)
