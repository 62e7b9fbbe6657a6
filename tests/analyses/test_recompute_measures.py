"""The figures of spectra, of statistics of activations and of trainings follow from their tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import probekit
from probekit.runs.recompute import recompute
from probekit_plugins.frozen_head.layers import Layers
from probekit_plugins.jacobian_spectrum import JacobianSpectrumOptions
from probekit_plugins.jacobian_spectrum.figures import figured
from tests.analyses.recomputing import assert_figures_follow

SHORT = [[5, 9], [1, 2, 3]]
PROMPTS = ["The sky is blue.", "Once upon a time", "What does a layer of the model"]
RUNS: list[tuple[str, dict[str, Any]]] = [
    ("jacobian-spectrum", {"sites": "block.0,norm", "method": "matrix-free", "iterations": 4, "probes": 2}),
    # As many products as directions, and all values at once: the methods of prompts of two lengths.
    ("jacobian-spectrum", {"sites": "block.0", "dense_entries": 64, "iterations": 100, "probes": 2}),
    ("layer-similarity", {"sites": "embedding,blocks,logits", "minibatch": 8}),
    ("layer-similarity", {"minibatch": 256, "alike": 0.01, "skip_first": 0}),
    ("activation-statistics", {"sites": "embedding,blocks,logits", "outlier_magnitude": 0.05, "outlier_share": 0.5}),
    ("activation-statistics", {"covariance_memory": 0, "positions": 2, "largest": 3, "skip_first": 5}),
    ("frozen-head", {"steps": 5, "batch": 2, "length": 8, "initialisations": 2, "pieces": 10}),
]
# By analysis, options of a run, and the tensors among its own of which each makes figures.
TENSORS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "jacobian-spectrum": (
        {"sites": "block.0", "method": "matrix-free", "iterations": 3, "probes": 2, "epsilons": [0.9]},
        tuple(f"0/block.0/{name}" for name in ("values", "shares", "probes", "squares", "columns", "floor")),
    ),
    "layer-similarity": (
        {"minibatch": 8},
        ("hsic", "tokens_compared", "tokens_kept", "neighbours/tokens", "neighbours/angles", "widths/0/block.0"),
    ),
    "activation-statistics": (
        {"sites": "block.1", "outlier_magnitude": 0.05},
        (
            *(f"{name}/block.1/{part}" for name in ("norms", "magnitudes") for part in ("values", "counts")),
            *(f"largest/block.1/{part}" for part in ("values", "places")),
            *("share_above/block.1", "largest_by_dimension/block.1", "covariance/block.1", "widths/0/block.1"),
            *("norm_sum", "norm_max", "directions", "direction_squares", "tokens", "prompts"),
        ),
    ),
    "frozen-head": (
        {"steps": 4, "batch": 2, "length": 8, "initialisations": 1, "pieces": 10},
        (
            *(f"0/frozen/{name}" for name in ("losses", "held_out", "gradients", "weights", "changes")),
            "held_out_pieces",
        ),
    ),
}


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_figures_follow(name: str, options: dict[str, Any], tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    given: dict[str, Any] = {"input_ids": SHORT} if name == "jacobian-spectrum" else {"prompts": PROMPTS}
    assert_figures_follow(probekit.run(tiny_gpt2(), name, options=options, output=tmp_path / "run", **given).path, name)


def test_figures_of_one_token_follow(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    """With most of them missing."""
    names = ["layer-similarity", "activation-statistics"]
    options = {"layer-similarity": {"skip_first": 0}}
    run = probekit.run(tiny_gpt2(), names, (), options, tmp_path / "run", input_ids=[[5]])
    for name in names:
        assert_figures_follow(run.path, name)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_says_something_else_is_told(name: str, tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    options, keys = TENSORS[name]
    saved = probekit.run(tiny_gpt2(), name, PROMPTS, options, tmp_path / "run").result
    kind = probekit.Plugins().analysis(name)
    analysis = kind(kind.options_model(**options))
    assert recompute(analysis, saved).different == []
    for key in keys:
        was = saved.tensors[key]
        rising = numpy.arange(was.size).reshape(was.shape)
        saved.tensors[key] = (0 * was if key.endswith("probes") else 2 * was + 1 + rising).astype(was.dtype)
        try:
            different = recompute(analysis, saved).different
        except (KeyError, IndexError) as error:  # a token or a place that there is not
            different = [str(error)]
        assert different, key
        saved.tensors[key] = was


def test_a_jacobian_of_zero_has_a_gain_of_zero() -> None:
    """By products too, whose standard error would be nothing over nothing."""
    tensors = {"values": torch.zeros(4), "shares": torch.arange(1, 5) / 4, "probes": torch.tensor([0, 0, 1, 1])}
    tensors |= {"residuals": torch.zeros(2, 2), "squares": torch.zeros(2)}
    tensors |= {"columns": torch.tensor(2), "floor": torch.tensor(1e-7)}
    measured = probekit.Result(
        tensors={f"0/norm/{name}": tensor for name, tensor in tensors.items()},
        sequences={"prompt": [probekit.TokenSequence([1], ["a"], {"prompt": 0, "sites": "norm"})]},
    )
    found = figured(measured, JacobianSpectrumOptions())
    assert (found.metrics["norm/gain"], found.tables["sites"][0]["gain_error"]) == (0, 0)
    assert found.finding == "At norm the activation does not depend on the input."
    found.encode()


def test_a_layer_that_begins_at_zero_has_no_relative_change(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    layers = Layers(subject.model, subject.anatomy)
    start = layers.snapshot()
    start[1] = [torch.zeros_like(each) for each in start[1]]
    changes = layers.relative_changes(start)
    assert changes.tolist() == [0] * len(start)
