"""The audit: every prompt recovered from every site under every condition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from probekit import Result
from probekit_plugins.autoencoder.through import several
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.exact_inverter.inversion import (
    VERIFIED_THROUGH,
    add_prompts,
    recovered,
    samples_to_learn_from,
    store,
    through_autoencoder,
)
from probekit_plugins.exact_inverter.recovery import Inverter
from probekit_plugins.exact_inverter.targets import blurred, captured, known_positions
from probekit_plugins.leakage_audit.conditions import NONE, Row, parts, prefix
from probekit_plugins.leakage_audit.figures import figured

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.leakage_audit import LeakageAuditOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: LeakageAuditOptions, context: Context) -> Result:
    """Recover the prompts under every condition. Raises AnalysisError for a site that is not causal."""
    sites = subject.expand_sites(options.sites)
    batches = Batches(context, options)
    result = Result()
    samples = None
    through = several(subject, options.through, NONE)
    for autoencoder in through.values():
        if not any(autoencoder.belongs(site) for site in sites):
            autoencoder.check_sites(sites)
    for site in sites:
        exact = [
            captured(subject, prompt, site, known_positions(prompt.input_ids.shape[1], "all")) for prompt in prompts
        ]
        samples = samples or samples_to_learn_from(subject, exact, context, batches)
        inverter = Inverter(subject, site, samples, options, context, batches)
        if site == sites[0]:
            add_prompts(result, subject, exact, {})
        given = {NONE: exact}
        for name, autoencoder in through.items():
            if autoencoder.belongs(site):
                result.notes.append(autoencoder.note(site, [target.activations for target in exact]))
                given[name] = through_autoencoder(autoencoder, exact, subject, site, samples)
        for name, precision, noise in product(given, dict.fromkeys(options.precisions), dict.fromkeys(options.noise)):
            condition: Row = {"site": site, "through": name, "precision": precision, "noise": noise}
            label = ", ".join(parts(condition))
            targets = [
                # The same noise at every precision and size: conditions differ by nothing else.
                blurred(target, precision, noise, context, f"noise/{number}/{site}")
                for number, target in enumerate(given[name])
            ]
            found = recovered(inverter, targets, context, label)
            store(result, subject, prefix(condition), condition, targets, found)
            tokens = sum(len(target.known) for target in targets)
            result.seconds[label] = sum(each.seconds + each.seconds_of_proof for each in found) / tokens
        result.seconds[f"{site}/learning"] = inverter.seconds
    result = figured(result)
    result.notes.append(
        "An attacker is assumed who has the model, and knows the site, the precision and the noise. Tokens are chosen "
        "one after the other, by their activations alone: a prior over texts would bring back more under strong noise."
    )
    if through:
        result.notes.append(VERIFIED_THROUGH)
    result.notes += notes_on_rows(subject) + batches.notes()
    return result
