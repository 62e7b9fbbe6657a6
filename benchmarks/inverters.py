"""The exact inverter at one site, as its analysis sets it up, and the activations to be inverted."""

from __future__ import annotations

import torch

import probekit
from probekit_plugins.exact_inverter import ExactInverterOptions
from probekit_plugins.exact_inverter.inversion import samples_to_learn_from
from probekit_plugins.exact_inverter.recovery import Inverter
from probekit_plugins.exact_inverter.targets import Target, captured, known_positions


def targets_of(subject: probekit.Subject, site: str, prompts: torch.Tensor) -> list[Target]:
    """The activations of each prompt of `[count, tokens]`, which passes through the model alone."""
    known = known_positions(prompts.shape[1], "all")
    return [captured(subject, probekit.Prompt("", ids[None], []), site, known) for ids in prompts]


def learnt(subject: probekit.Subject, site: str, targets: list[Target], context: probekit.Context) -> Inverter:
    """An inverter that has learnt what it learns once for prompts of that length; `seconds` says how long that took.

    The prompts that it learns from, half of which the model writes, are drawn within that time.
    """
    inverter = Inverter(
        subject, site, samples_to_learn_from(subject, targets, context), ExactInverterOptions(), context
    )
    _ = inverter.error, inverter.likelihood
    return inverter
