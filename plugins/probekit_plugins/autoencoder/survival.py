"""How much of a prompt survives: the exact inverter on what autoencoders make of its activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, Prompt, TokenSequence
from probekit_plugins.autoencoder.through import Reconstruct
from probekit_plugins.batches import Batches
from probekit_plugins.exact_inverter import SearchOptions
from probekit_plugins.exact_inverter.inversion import recovered, samples_to_learn_from
from probekit_plugins.exact_inverter.recovery import Inverter
from probekit_plugins.exact_inverter.targets import captured, known_positions, reconstructed

if TYPE_CHECKING:
    from probekit import Context, Subject

# The name of the row of the exact activations.
NONE = "none"

Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Survival:
    """A row for the exact activations ("none") and for each autoencoder, and what was recovered of each prompt; or the
    reason why there is nothing.
    """

    rows: list[Row] = field(default_factory=list)
    prompts: list[TokenSequence] = field(default_factory=list)
    recovered: list[TokenSequence] = field(default_factory=list)
    reason: str | None = None


def survivors(
    subject: Subject,
    site: str,
    autoencoders: Mapping[str, Reconstruct],
    prompts: Sequence[Sequence[int]],
    errors: Mapping[str, float],
    skip_first: int,
    context: Context,
    batches: Batches | None = None,
) -> Survival:
    """Recover prompts (token ids) from `x̂` at a site, position by position: each takes the candidate whose activation
    is the nearest, given the tokens found before it, as the leakage audit does under noise.

    `errors` are the root mean squares of `x − x̂` in an entry, by autoencoder: whoever recovers a prompt takes them for
    the σ of noise. He does not pass his candidates through the autoencoder as well, and would find more if he did.
    Positions before `skip_first` keep their own activation, and do not count: `tokens` are those from there on,
    `token_accuracy` the share of them that is right, `exact_prompts` the share of prompts in which all of them are.
    Sequences are labelled by `site`, `prompt` and, where recovered, `autoencoder`.
    """
    prompts = [each for each in prompts if len(each) > skip_first]
    what = f"How many tokens survive at {site} is not measured"
    if not prompts:
        return Survival(reason=f"{what}: no prompt is longer than the {skip_first} positions that are left out.")
    batches = batches or Batches(context)
    found = Survival()
    try:
        exact = []
        for prompt in prompts:
            ids = subject.check_ids(list(prompt))
            known = known_positions(len(prompt), "all")
            exact.append(captured(subject, Prompt("", ids, subject.tokens(ids)), site, known))
        samples = samples_to_learn_from(subject, exact, context, batches)
        # What is recovered is not to be proved: then no proof needs the whole vocabulary.
        inverter = Inverter(subject, site, samples, SearchOptions(combinations=0), context, batches)
        _ = inverter.error, inverter.likelihood  # refuse what cannot be inverted
    except AnalysisError as error:
        return Survival(reason=f"{what}: {error}")
    for name, reconstruct in {NONE: None, **autoencoders}.items():
        targets = exact
        if reconstruct is not None:
            targets = [reconstructed(target, reconstruct, errors[name], skip_first) for target in exact]
        recoveries = recovered(inverter, targets, context, f"{site}, survival, {name}")
        right = []
        for number, (recovery, prompt) in enumerate(zip(recoveries, prompts, strict=True)):
            labels: Row = {"site": site, "prompt": number, "autoencoder": name}
            found.recovered.append(TokenSequence(recovery.ids, subject.tokens(recovery.ids), labels))
            hits = torch.tensor(recovery.ids) == torch.tensor(list(prompt))
            right.append(hits[skip_first:])
        found.rows.append(
            {
                "site": site,
                "autoencoder": name,
                "tokens": len(torch.cat(right)),
                "token_accuracy": float(torch.cat(right).double().mean()),
                "exact_prompts": mean(float(each.all()) for each in right),
            }
        )
    for number, prompt in enumerate(prompts):
        labels = {"site": site, "prompt": number}
        found.prompts.append(TokenSequence(list(prompt), subject.tokens(list(prompt)), labels))
    return found
