"""Every analysis, where memory holds two rows at once only: it finds what it finds where memory is plenty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import probekit
from tests.analyses.recovering import few_samples

FIT = 2
WALK = {"steps": 3, "walkers": 3, "noise_draws": 2, "sites": "block.1"}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "inverter": ("gradient-inverter", {"steps": 4, "restarts": 3, "sites": "block.0,logits", "record_every": 2}),
    "inverter with a head": ("gradient-inverter", {"steps": 3, "restarts": 3, "head": "model"}),
    "orthogonal walk": ("orthogonal-walk", WALK),
    "gradient of a sum": ("orthogonal-walk", {**WALK, "walkers": 1, "gradient_check": True}),
    "clamped walk": ("clamped-walk", WALK),
    "null-space walk": ("null-space-walk", {**WALK, "iterations": 4, "correction_iterations": 3}),
    "spectrum": ("jacobian-spectrum", {"method": "matrix-free", "iterations": 4, "probes": 5, "sites": "block.1"}),
    "dense spectrum": ("jacobian-spectrum", {"method": "dense", "sites": "block.0"}),
    "exact inverter": (
        "exact-inverter",
        {"proposals": 1, "gradient_steps": 0, "sites": "block.1", "positions": [0, -2, -1], "rivals": "all"},
    ),
    "leakage audit": ("leakage-audit", {"sites": "block.1", "precisions": ["none"], "noise": [0.0, 0.1]}),
    "frozen head": ("frozen-head", {"steps": 3, "batch": 5, "length": 12, "initialisations": 1, "text": __file__}),
    "repetition": (
        "repetition",
        {
            "strategies": ["greedy", "contrastive"],
            "new_tokens": 4,
            "unlikelihood_steps": 2,
            "unlikelihood_batch": 5,
            "text": __file__,
            "text_length": 12,
            "text_pieces": 5,
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_its_figures_do_not_depend_on_how_many_rows_fit(
    name: str, tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, options = OPTIONS[name]
    few_samples(monkeypatch)

    def run(folder: str) -> probekit.Result:
        ids = [[4, 40, 41, 9], [7, 33, 12], [5, 6, 7, 8]]
        done = probekit.run(
            model={"name": str(tiny_gpt2()), "dtype": "float64"},
            plugins=plugin,
            input_ids=ids,
            options=options,
            output=tmp_path / folder,
        )
        assert done.failures == {}
        return done.result

    whole = run("whole")
    assert not any(note.startswith("Memory ran out") for note in whole.notes)
    forward = GPT2Block.forward
    most = 0

    def small(self: GPT2Block, hidden_states: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        nonlocal most
        if len(hidden_states) > FIT:
            raise torch.OutOfMemoryError("on purpose")
        most = max(most, len(hidden_states))
        return forward(self, hidden_states, *arguments, **more)

    monkeypatch.setattr(GPT2Block, "forward", small)
    split = run("split")
    assert most == FIT
    assert next(note for note in split.notes if note not in whole.notes).startswith("Memory ran out")
    assert split.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-9, nan_ok=True)
    assert split.tensors.keys() == whole.tensors.keys()
    for key, tensor in split.tensors.items():
        assert tensor == pytest.approx(whole.tensors[key], rel=1e-4, abs=1e-7), key
