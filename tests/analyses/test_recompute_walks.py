"""The figures of the walks follow from their tensors and token sequences, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs.recompute import recompute
from tests.analyses.recomputing import assert_figures_follow

PROMPTS = ["The sky is blue.", "Once"]
OPTIONS: dict[str, dict[str, Any]] = {
    "orthogonal-walk": {"gradient_check": True, "step_size": 0.5},
    "clamped-walk": {"inner": [0, 2]},
    "null-space-walk": {"iterations": 4, "correction_iterations": 3, "control": False},
}
# Walks in which no token changes, the activation does not move at all, or more walks than a finding names.
FURTHER: list[tuple[str, dict[str, Any]]] = [
    ("orthogonal-walk", {"step_size": 1e-30}),
    ("clamped-walk", {"inner": [1, 2, 3, 4], "noise": 1e-3}),
]


def walked(model: Path, output: Path, name: str, **options: Any) -> Path:
    settings = {"steps": 3, "walkers": 2, "noise_draws": 2, "top_k": 2, "sites": "block.0,norm", **options}
    return probekit.run(model, name, PROMPTS, {name: settings}, output).path


@pytest.mark.parametrize(("name", "options"), [*OPTIONS.items(), *FURTHER])
def test_figures_follow(name: str, options: dict[str, Any], tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    assert_figures_follow(walked(tiny_gpt2(), tmp_path / "run", name, **options), name)


def test_a_tensor_that_says_something_else_is_told(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    """Of what was measured, each tensor that figures come from."""
    name = "orthogonal-walk"
    options = {"steps": 2, "walkers": 1, "noise_draws": 1, "sites": "norm", "gradient_check": True}
    run = probekit.run(tiny_gpt2(), name, PROMPTS[0], options, tmp_path / "run")
    kind = probekit.Plugins().analysis(name)
    analysis, saved = kind(kind.options_model(**options)), run.result
    assert recompute(analysis, saved).different == []
    prefix = "0/norm/orthogonal"
    distances = [f"{of}_l{order}" for of in ("input", "output", "noise") for order in (1, 2)]
    for key in (
        *(f"{prefix}/{each}" for each in (*distances, "orthogonality", "product", "ids")),
        *(f"0/norm/{each}_l2" for each in ("embeddings", "activation")),
        *(f"0/norm/gradient/{each}" for each in ("summed", "per output", "backward of ones")),
    ):
        was = saved.tensors[key]
        saved.tensors[key] = 2 * was + 1
        assert recompute(analysis, saved).different, key
        saved.tensors[key] = was
