"""How much of a prompt survives: the exact inverter on what autoencoders make of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, Prompt, TokenSequence
from probekit_plugins.autoencoder.aware import Aware, knowing
from probekit_plugins.autoencoder.survived import NONE, Row, shares
from probekit_plugins.autoencoder.through import Reconstruct
from probekit_plugins.batches import Batches
from probekit_plugins.exact_inverter import SearchOptions
from probekit_plugins.exact_inverter.inversion import recovered, samples_to_learn_from
from probekit_plugins.exact_inverter.recovery import Inverter
from probekit_plugins.exact_inverter.targets import Target, captured, known_positions, reconstructed

if TYPE_CHECKING:
    from probekit import Context, Subject


@dataclass(frozen=True)
class Survival:
    """A row for the exact activations ("none") and for each autoencoder, and what was recovered of each prompt, by one
    who does not know the autoencoder (`recovered`) and by one who does (`aware`); or the reason why there is nothing.
    """

    rows: list[Row] = field(default_factory=list)
    prompts: list[TokenSequence] = field(default_factory=list)
    recovered: list[TokenSequence] = field(default_factory=list)
    aware: list[TokenSequence] = field(default_factory=list)
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
    """Recover prompts (token ids) from `x̂` at a site, position by position: once without knowing the autoencoder, and
    once knowing it.

    Who does not know it takes the candidate whose activation is the nearest to `x̂`, given the tokens found before it,
    as the leakage audit does under noise: `errors` are the root mean squares of `x − x̂` in an entry, by autoencoder,
    and are taken for its σ. Who knows it passes candidates through it as well. Then a token counts as right only if
    nothing else that was tried fits (`Aware.read`): a guess among equals is none.

    Positions before `skip_first` keep their own activation, and do not count: `tokens` are those from there on,
    `token_accuracy` the share of them that is right, `exact_prompts` the share of prompts in which all of them are, and
    `token_accuracy_aware`, `exact_prompts_aware` the same for who knows the autoencoder. Sequences are
    labelled by `site`, `prompt` and, where recovered, `autoencoder`; those of `aware` also by `told`: for each token
    "1" if nothing else fits, else "0".
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
        for number, recovery in enumerate(recoveries):
            labels: Row = {"site": site, "prompt": number, "autoencoder": name}
            found.recovered.append(TokenSequence(recovery.ids, subject.tokens(recovery.ids), labels))
        if reconstruct is not None:
            label = f"{site}, survival, {name}, known"
            aware = knowing(inverter, subject, site, reconstruct, skip_first, samples(), batches, context, label)
            for number, (ids, told) in enumerate(_read(aware, targets, context, label)):
                labels = {"site": site, "prompt": number, "autoencoder": name}
                labels["told"] = "".join(str(int(each)) for each in told)
                found.aware.append(TokenSequence(ids.tolist(), subject.tokens(ids.tolist()), labels))
    for number, prompt in enumerate(prompts):
        labels = {"site": site, "prompt": number}
        found.prompts.append(TokenSequence(list(prompt), subject.tokens(list(prompt)), labels))
    found.rows.extend(shares(found.prompts, found.recovered, found.aware, skip_first))
    return found


def _read(
    aware: Aware, targets: Sequence[Target], context: Context, label: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and which are told, for each target; what is done is kept for a run that is resumed."""
    with context.progress(label, len(targets)) as progress:
        for number, target in enumerate(targets):

            def read(target: Target = target) -> dict[str, torch.Tensor]:
                ids, told = aware.read(target.activations)
                return {"ids": ids.cpu(), "told": told.cpu()}

            found = context.stage(f"{label}/{number}", read)
            progress.step(1)
            yield found["ids"], found["told"].bool()
