"""The analysis itself: what to invert, every site and prompt recovered, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence, UsageError
from probekit_plugins.autoencoder.through import Through
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.exact_inverter.figures import NONE, columns, figured
from probekit_plugins.exact_inverter.recovery import TOGETHER, Inverter, Recovery
from probekit_plugins.exact_inverter.targets import (
    Target,
    blurred,
    captured,
    check_one_site,
    from_file,
    known_positions,
    reconstructed,
)
from probekit_plugins.exact_inverter.verdict import Status, Verdict
from probekit_plugins.token_likelihood import sampled_prompts

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.exact_inverter import ExactInverterOptions

# What a reader has to know of tokens that are verified through an autoencoder.
VERIFIED_THROUGH = (
    "How far an autoencoder is off is taken to be known, and for normal noise, which it is not quite: what is verified "
    "there is not as certain as elsewhere. Candidates do not pass through it; that would bring back more."
)

Scalar = str | int | float | bool | None


def run(subject: Subject, prompts: Sequence[Prompt], options: ExactInverterOptions, context: Context) -> Result:
    """Recover every prompt from every site. Raises UsageError for wrong options or a file that holds no activations of
    the site, AnalysisError for a model or site that does not read from left to right.
    """
    sites = subject.expand_sites(options.sites)
    if options.activations is not None:
        check_one_site(sites)
        if options.rounding != "none":
            raise UsageError("The option rounding is for the prompts' activations; those of a file are as they are.")
        if options.through is not None:
            raise UsageError("The option through is for the prompts' activations; those of a file are as they are.")
    through = None if options.through is None else Through(subject, options.through)
    if through:
        through.check_sites(sites)
    batches = Batches(context, options)
    result = Result()
    samples = None
    for site in sites:
        targets = _exact(subject, prompts, site, options)
        samples = samples or samples_to_learn_from(subject, targets, context, batches)
        inverter = Inverter(subject, site, samples, options, context, batches)
        if through:
            result.notes.append(through.note(site, [target.activations for target in targets]))
            targets = through_autoencoder(through, targets, subject, site, samples)
        if options.activations is None:
            targets = [
                blurred(target, options.rounding, options.noise, context, f"noise/{number}/{site}")
                for number, target in enumerate(targets)
            ]
        found = recovered(inverter, targets, context, site)
        result.tensors[f"{site}/arithmetic_error"] = torch.tensor(inverter.error, dtype=torch.float64)
        add_prompts(result, subject, targets, {"site": site})
        store(result, subject, site, {"site": site}, targets, found)
        for number, recovery in enumerate(found):
            prefix = f"{site}/{number}"
            result.seconds |= {
                f"{prefix}/search": recovery.seconds,
                f"{prefix}/proof": recovery.seconds_of_proof,
            }
        result.seconds[f"{site}/learning"] = inverter.seconds
    result.sequences["vocabulary"] = [_rivals(result, subject, sites)]
    result = figured(result)
    if through:
        result.notes.append(VERIFIED_THROUGH)
    if options.activations is not None:
        result.notes.append(
            "The activations are those of a file: whether what was recovered is right is known by the proof alone."
        )
    result.notes += _notes(result, options) + notes_on_rows(subject) + batches.notes()
    return result


def _rivals(result: Result, subject: Subject, sites: Sequence[str]) -> TokenSequence:
    """The tokens that were the nearest rivals somewhere, with their texts."""
    found = {token for site in sites for token in result.tensors[f"{site}/rival"].tolist()}
    ids = sorted(found - {NONE})
    return TokenSequence(ids, subject.tokens(ids))


def samples_to_learn_from(
    subject: Subject, targets: Sequence[Target], context: Context, batches: Batches | None = None
) -> Callable[[], Sequence[torch.Tensor]]:
    """A function that gives the prompts to learn from, drawn when it is first called: as long as the longest target."""
    length = max(len(target.known) for target in targets)
    return cache(lambda: sampled_prompts(subject, length, context, "samples", batches))


def _exact(subject: Subject, prompts: Sequence[Prompt], site: str, options: ExactInverterOptions) -> list[Target]:
    """The activations of the prompts, or of a file, as they are."""
    if options.activations is not None:
        width = subject.capture(prompts[0].input_ids, [site])[site].shape[-1]
        return from_file(subject, options, site, width)
    return [
        captured(subject, prompt, site, known_positions(prompt.input_ids.shape[1], options.positions))
        for prompt in prompts
    ]


def through_autoencoder(
    through: Through,
    targets: Sequence[Target],
    subject: Subject,
    site: str,
    samples: Callable[[], Sequence[torch.Tensor]],
) -> list[Target]:
    """What an autoencoder makes of the activations of prompts.

    How far it is off is taken for noise: as its file says, or else as measured on `samples`, prompts to learn from.
    """
    error = through.error(subject, site, samples)
    return [reconstructed(target, through.reconstruct, error, through.skip_first) for target in targets]


def recovered(inverter: Inverter, targets: Sequence[Target], context: Context, label: str) -> list[Recovery]:
    """Every target recovered, some at a time; what is done is kept for a run that is resumed. `label` is unique."""
    found: list[Recovery] = []
    with context.progress(label, sum(len(target.known) for target in targets)) as progress:
        for first in range(0, len(targets), TOGETHER):
            group = targets[first : first + TOGETHER]

            def recover(group: Sequence[Target] = group) -> dict[str, torch.Tensor]:
                return {"recovered": _packed(inverter.recover(group, lambda settled: progress.step(settled)))}

            found += _unpacked(context.stage(f"{label}/{first}", recover)["recovered"])
    return found


def _packed(recoveries: Sequence[Recovery]) -> torch.Tensor:
    """What was found as bytes of JSON, for a checkpoint, which holds tensors."""
    text = json.dumps([asdict(recovery) for recovery in recoveries])
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _unpacked(packed: torch.Tensor) -> list[Recovery]:
    found = json.loads(bytes(packed.tolist()))
    for each in found:
        each["verdicts"] = [Verdict(**{**verdict, "status": Status(verdict["status"])}) for verdict in each["verdicts"]]
    return [Recovery(**each) for each in found]


def add_prompts(result: Result, subject: Subject, targets: Sequence[Target], place: dict[str, Scalar]) -> None:
    """The prompts' own tokens, where they are known, as token sequences."""
    for number, target in enumerate(targets):
        if target.truth is not None:
            labels: dict[str, Scalar] = {"prompt": number, **place}
            sequence = TokenSequence(target.truth, subject.tokens(target.truth), labels)
            result.sequences.setdefault("prompt", []).append(sequence)


def store(
    result: Result,
    subject: Subject,
    prefix: str,
    place: dict[str, Scalar],
    targets: Sequence[Target],
    found: Sequence[Recovery],
) -> None:
    """What was recovered of each prompt as token sequences, and what the figures follow from as tensors of that prefix:
    one value for each position, one prompt after the other, or one for each prompt.
    """
    every = columns([verdict for recovery in found for verdict in recovery.verdicts])
    for name in ("tried", "by_gradient"):
        every[name] = [value for recovery in found for value in getattr(recovery, name)]
    every["noisy"] = [target.noisy for target in targets]
    every["computed"] = [recovery.computed for recovery in found]
    # What is measured in fp32 is read back as the same number.
    floats = {"distance": torch.float64, "bound": torch.float64, "rival_distance": torch.float64}
    tensors = {name: torch.tensor(values, dtype=floats.get(name)) for name, values in every.items()}
    tensors["known"] = torch.cat([target.known.cpu() for target in targets])
    tensors["width"] = torch.tensor(targets[0].activations.shape[-1])
    result.tensors |= {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}
    for number, recovery in enumerate(found):
        labels = {"prompt": number, **place, "reasons": " ".join(recovery.reasons) or None}
        sequence = TokenSequence(recovery.ids, subject.tokens(recovery.ids), labels)
        result.sequences.setdefault("recovered", []).append(sequence)


def _notes(result: Result, options: ExactInverterOptions) -> list[str]:
    notes = []
    if options.noise:
        notes.append(
            f"The activations hold normal noise of σ = {options.noise:g} times their root mean square, so that the "
            "best of 64 candidates is taken, and a token is verified if its rivals are less likely by a factor of 10¹³."
        )
    if options.rounding != "none":
        notes.append(f"The activations were rounded to {options.rounding} before they were inverted.")
    if any(row["status"] == Status.NEAREST for row in result.tables["positions"]):
        notes.append(
            "Some tokens are the nearest that there are, but not near enough to be verified. If the activations were "
            "computed elsewhere, or hold noise, say so: -o tolerance=… or -o noise=…"
        )
    if options.rivals != "all" and any(row["status"] == Status.VERIFIED for row in result.tables["positions"]):
        notes.append(
            f"Each verified token was held against {options.rivals} rivals beside those that were tried on the way; "
            "-o rivals=all holds it against the whole vocabulary."
        )
    return notes
