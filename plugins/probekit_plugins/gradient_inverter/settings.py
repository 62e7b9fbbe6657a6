"""Options that go together, under one name: the source page's own, and the strongest that were measured; and what
options that are not given come to. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# Everything that decides how a descent goes and how it is decoded, so that no other option stays beside these.
PAGE: dict[str, Any] = {
    "optimizer": "descent",
    "learning_rate": 0.2,
    "schedule": "linear",
    "loss": "l1",
    "start": "noise",
    "start_mean": 0.5,
    "start_sigma": 0.05,
    "noise_share": 1.0,
    "target_share": 0.0,
    "input_space": "embedding",
    "nearest_pull": 0.0,
    "embedding_box": False,
    "decoder": "pseudo-inverse",
    "rescore": 0,
    "compare_page": False,
}

# What helped on texts that nothing is reported of; docs/analyses/gradient-inverter.md says by how much.
STRONG: dict[str, Any] = {
    "start": "regression",
    "loss": "l2",
    "embedding_box": True,
    "rescore": 32,
    "compare_page": True,
}

NAMED: dict[str, dict[str, Any]] = {"default": {}, "strong": STRONG, "page": PAGE}


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as given, and those of the named settings for what was not given."""
    name = given.get("settings", "default")
    return {**(NAMED.get(name, {}) if isinstance(name, str) else {}), **given}


def start_sigma(spread: float, options: GradientInverterOptions) -> float:
    """The standard deviation of the noise that a restart starts from, or that is around a regression. `spread` is that
    of noise whose embeddings have about the spread of the embedding matrix.
    """
    if options.start_sigma is not None:
        return options.start_sigma
    return spread / 4 if options.start == "regression" else spread


def learning_rate(spread: float, options: GradientInverterOptions) -> float:
    """The learning rate at the start."""
    return options.learning_rate or {"adam": spread / 4, "descent": 0.2, "lbfgs": 1.0}[options.optimizer]
