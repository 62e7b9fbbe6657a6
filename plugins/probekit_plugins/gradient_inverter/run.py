"""A whole run of the inverter: every site, and the same at the source page's settings where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result, UsageError
from probekit_plugins.autoencoder.through import Through
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.gradient_inverter.comparison import Comparison
from probekit_plugins.gradient_inverter.figures import figured
from probekit_plugins.gradient_inverter.inversion import Descent, Inversion
from probekit_plugins.gradient_inverter.masks import notes_on_dropout
from probekit_plugins.gradient_inverter.next_tokens import asked, notes_on_asked
from probekit_plugins.gradient_inverter.ranks import Nearness, occurrences
from probekit_plugins.gradient_inverter.scoring import store
from probekit_plugins.gradient_inverter.spaces import allowed_tokens
from probekit_plugins.gradient_inverter.summary import notes_on_starts
from probekit_plugins.gradient_inverter.together import Together, may_share

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: GradientInverterOptions, context: Context) -> Result:
    """Invert every site for all prompts. Raises UsageError, or AnalysisError if a target or a descent is not finite."""
    sites = subject.expand_sites(options.sites)
    prompt_ids = [index for prompt in prompts for index in prompt.input_ids[0].tolist()]
    allowed = allowed_tokens(subject, options, prompt_ids)
    size = subject.vocabulary if allowed is None else len(allowed)
    if options.top_k > size:
        raise UsageError(f"top_k is {options.top_k}, but the vocabulary has {size} tokens.")
    result = Result()
    if options.frequencies is not None:
        result.tensors["occurrences"] = occurrences(subject, options.frequencies)
    whole = asked(subject, prompts, options)
    nearness = Nearness(subject)
    batches = Batches(context, options)
    through = None if options.through is None else Through(subject, options.through)
    if through:
        through.check_sites(sites)
    compared = (subject, prompts, sites, allowed, options, context, batches, through)
    page = Comparison(*compared) if options.compare_page else None
    dropped: dict[str, bool] = {}

    def inverted(site: str) -> Inversion:
        return Inversion(subject, prompts, site, allowed, options, context, batches, through=through)

    made: dict[str, Inversion] = {}
    descents: dict[str, Descent] = {}
    if may_share(subject, sites, prompts, options):
        made = {site: inverted(site) for site in sites}
        descents = Together(list(made.values())).descend(subject, options, context, batches)
    shared = list(descents)
    for site in sites:
        inversion = made.pop(site, None) or inverted(site)
        if through:
            result.notes.append(_note(subject, prompts, site, through))
        found = inversion.figures(descents.pop(site, None))
        for number, figures in enumerate(found):
            store(result, figures, subject, prompts[number], number, site, options, whole, nearness, batches)
        result.tensors["spread"] = torch.tensor(inversion.space.spread, dtype=torch.float64)
        if options.dropout:
            dropped[site] = inversion.drops
            for number, losses in enumerate(inversion.dropout_losses()):
                result.tensors[f"{number}/{site}/dropout_losses"] = losses
        if page:
            page.add(result, site)
    result = figured(result, options)
    result.notes += notes_on_starts(options)
    if subject.conditioned_on_ids:
        result.notes.append(
            "Conditioned on ids: blocks of this model read the token ids again, so they were given the prompt's own, "
            "and what was recovered is not known from the activation alone."
        )
    if shared:
        result.notes.append(
            f"The rows of {len(shared)} sites went through the blocks in one pass a step; a site alone differs from "
            "that by rounding (-o share_pass=no)."
        )
    result.notes += notes_on_asked(whole, options)
    noise: dict[str, Any] = {
        site: result.metrics[f"{site}/dropout_noise_ratio"] for site, drops in dropped.items() if drops
    }
    without = [site for site, drops in dropped.items() if not drops]
    result.notes += notes_on_dropout(noise, without) + notes_on_rows(subject) + batches.notes()
    return result


def _note(subject: Subject, prompts: Sequence[Prompt], site: str, through: Through) -> str:
    """What the targets are, and what follows for the losses."""
    activations = [subject.capture(prompt.input_ids, [site])[site] for prompt in prompts]
    return (
        f"{through.note(site, activations)} So the prompt's own tokens do not give a loss of 0, and others may give a "
        "lower one."
    )
