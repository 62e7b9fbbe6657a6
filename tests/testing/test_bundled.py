"""Every bundled analysis keeps the promises that those of others are checked for."""

from __future__ import annotations

from typing import Any

import pytest

import probekit
from probekit.testing import check_analysis
from tests.analyses.recovering import few_samples

# Options for a small run; without an entry, an analysis is quick enough with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "autoencoder": {"widths": [3], "steps": 3, "seeds": 2, "pieces": 10, "length": 8, "invert": 1},
    "clamped-walk": {"steps": 2, "walkers": 1, "noise_draws": 1, "inner": 2, "sites": "norm"},
    "control-codes": {"only": ["Horror", "Legal"], "new_tokens": 3, "temperature": 1.0, "samples": 2},
    "exact-inverter": {"sites": "block.1", "proposals": 1},
    "frozen-head": {"steps": 2, "batch": 2, "length": 12, "initialisations": 1, "pieces": 10},
    "gradient-inverter": {"steps": 4, "restarts": 2, "sites": "block.1,norm,logits", "record_every": 2},
    "jacobian-spectrum": {"sites": "block.0,block.1", "method": "matrix-free", "iterations": 4, "probes": 2},
    "leakage-audit": {"sites": "block.1", "precisions": ["none"], "noise": [0.0, 2.0]},
    "null-space-walk": {
        "steps": 2,
        "walkers": 1,
        "noise_draws": 1,
        "iterations": 4,
        "correction_iterations": 3,
        "sites": "block.1",
    },
    "one-word-autoencoder": {"steps": 3, "batch": 4, "pieces": 20, "length": 6, "segment": 3, "repulsion": "info-nce"},
    "orthogonal-walk": {"steps": 2, "walkers": 1, "noise_draws": 1, "sites": "logits"},
    "pseudo-inverse": {"sites": "embedding,blocks,logits"},
    "repetition": {
        "strategies": ["temperature", "contrastive"],
        "new_tokens": 2,
        "samples": 2,
        "text_length": 8,
        "random_draws": 2,
        "unlikelihood_steps": 1,
        "unlikelihood_batch": 2,
        "unlikelihood_pieces": 4,
    },
    "text-vae": {"steps": 4, "batch": 4, "pieces": 20, "length": 6, "latent": 3, "importance_samples": 2},
}


BUNDLED = [record for record in probekit.Plugins().records if record.distribution == "probekit"]


def test_every_bundled_plugin_is_loaded() -> None:
    assert [(record.name, record.error) for record in BUNDLED if record.status != "loaded"] == []


@pytest.mark.parametrize("name", sorted(analysis.name for record in BUNDLED for analysis in record.analyses))
def test_a_bundled_analysis_keeps_every_promise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)
    check_analysis(probekit.Plugins().analysis(name), **SMALL.get(name, {}))
