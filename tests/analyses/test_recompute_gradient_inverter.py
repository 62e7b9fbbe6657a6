"""Every figure of an inversion comes out again from what was measured, with each option that adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.recompute import recompute
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.gradient_inverter.settings import PAGE
from tests.analyses.recomputing import assert_figures_follow

PROMPTS = ["The sky is blue.", "Once upon a time, there was a girl."]
SMALL: dict[str, Any] = {"steps": 4, "restarts": 3, "record_every": 2, "top_k": 3}


def run(model: Path, output: Path, **options: Any) -> probekit.Run:
    return probekit.run(
        model=str(model), plugins=["gradient-inverter"], prompts=PROMPTS, options={**SMALL, **options}, output=output
    )


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2(initializer_range=0.3)


@pytest.fixture(scope="module")
def saved(model: Path, tmp_path_factory: pytest.TempPathFactory) -> probekit.Result:
    return run(model, tmp_path_factory.mktemp("saved") / "run").result


@pytest.mark.parametrize(
    "options",
    [
        {"sites": "block.0,block.2", "settings": "strong", "rescore": 4},
        {"sites": "block.1,norm", "head": "model", "shift_sigma": [0.05, 0.01], "restarts": 2},
        {"next_token_model": "another", "restarts": 1},
        {"sites": "embedding", "dropout": True, "restarts": 1, "next_token": False},
        {"input_space": "vocabulary-softmax", "optimizer": "lbfgs", "vocabulary": "prompts", "target_positions": [-1]},
    ],
    ids=["strong", "truncated", "asked", "dropout", "softmax"],
)
def test_every_figure_follows_from_what_was_measured(
    model: Path, tiny_gpt2: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    if options.get("dropout"):
        text = tmp_path / "text.txt"
        text.write_text("The sea is blue. " * 9)
        options = {**options, "frequencies": str(text)}
    if options.get("next_token_model"):
        options = {**options, "next_token_model": str(tiny_gpt2(seed=1))}
    run(model, tmp_path / "run", **options)
    assert_figures_follow(tmp_path / "run", "gradient-inverter")


def test_where_the_pages_descent_found_nothing_its_figures_are_none(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PAGE, "learning_rate", 1e30)
    found = run(model, tmp_path / "run", compare_page=True)
    assert found.result.metrics["block.0/page/token_accuracy_mean"] is None
    assert_figures_follow(tmp_path / "run", "gradient-inverter")


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        ("losses", "'block.0/loss_ratio_median'"),
        ("discrete_losses", "row 2, column 'selected'"),
        ("top_k_ids", "'block.0/top_k_accuracy_mean'"),
        ("embeddings", "column 'distance_l2'"),
        ("percentile", "the table 'ranks', row 2, column 'percentile'"),
        ("next_token_of_tokens", "column 'next_token_of_tokens'"),
    ],
)
def test_a_tensor_that_was_changed_no_longer_says_what_the_tables_say(
    saved: probekit.Result, tensor: str, told: str
) -> None:
    changed = saved.tensors[f"0/block.0/{tensor}"].copy()
    changed[..., -1:] = -1 if changed.dtype.kind == "i" else -0.5
    tensors = {**saved.tensors, f"0/block.0/{tensor}": changed}
    found = recompute(GradientInverter(GradientInverterOptions(**SMALL)), replace(saved, tensors=tensors))
    assert told in " ".join(found.different)
