"""The analysis itself: what to invert, every site and prompt recovered, and the figures of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from math import floor
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result, TokenSequence, UsageError
from probekit_plugins.autoencoder.through import Through
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.exact_inverter.proof import Status, Verdict
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
        result.metrics[f"{site}/arithmetic_error"] = inverter.error
        for number, (target, recovery) in enumerate(zip(targets, found, strict=True)):
            store(result, subject, {"prompt": number, "site": site}, target, recovery)
            prefix = f"{site}/{number}"
            result.seconds |= {
                f"{prefix}/search": recovery.seconds,
                f"{prefix}/proof": recovery.seconds_of_proof,
            }
        result.seconds[f"{site}/learning"] = inverter.seconds
        rows = [row for row in result.tables["prompts"] if row["site"] == site]
        places = [row for row in result.tables["positions"] if row["site"] == site]
        result.metrics |= {f"{site}/{name}": value for name, value in figures(rows, places).items()}
    result.finding = _finding(result, sites)
    if through:
        result.notes.append(VERIFIED_THROUGH)
    if options.activations is not None:
        result.notes.append(
            "The activations are those of a file: whether what was recovered is right is known by the proof alone."
        )
    result.notes += _notes(result, options) + notes_on_rows(subject) + batches.notes()
    return result


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


def store(result: Result, subject: Subject, labels: dict[str, Scalar], target: Target, recovery: Recovery) -> None:
    """What was recovered of one prompt, as a row, a row for each position, and token sequences."""
    texts = subject.tokens(recovery.ids)
    if target.truth is not None:
        result.sequences.setdefault("prompt", []).append(
            TokenSequence(target.truth, subject.tokens(target.truth), {**labels})
        )
    result.sequences.setdefault("recovered", []).append(TokenSequence(recovery.ids, texts, {**labels}))
    right = [None] * len(texts) if target.truth is None else _equal(recovery.ids, target.truth)
    result.tables.setdefault("positions", [])
    for position, (verdict, text) in enumerate(zip(recovery.verdicts, texts, strict=True)):
        result.tables["positions"].append(
            {
                **labels,
                "position": position,
                "known": bool(target.known[position]),
                "recovered": recovery.ids[position],
                "text": text,
                "right": right[position],
                "status": verdict.status.value,
                "distance": verdict.distance,
                "bound": verdict.bound,
                "rival": verdict.rival,
                "rival_text": None if verdict.rival is None else subject.tokens([verdict.rival])[0],
                "rival_distance": verdict.rival_distance,
                "ties": verdict.ties,
                "noise_survived": recovery.noise_survived[position],
                "tried": recovery.tried[position],
                "by_gradient": recovery.by_gradient[position],
            }
        )
    verified = [verdict.status == Status.VERIFIED for verdict in recovery.verdicts]
    result.tables.setdefault("prompts", []).append(
        {
            **labels,
            "tokens": len(texts),
            "exact": None if target.truth is None else recovery.ids == target.truth,
            "token_accuracy": None if target.truth is None else mean(map(float, right)),  # type: ignore[arg-type]
            "verified": sum(verified),
            "tied": sum(verdict.status == Status.TIED for verdict in recovery.verdicts),
            "false_positives": None
            if target.truth is None
            else sum(each and not hit for each, hit in zip(verified, right, strict=True)),
            "candidates_per_token": mean(recovery.tried),
            "computed": recovery.computed,
            "reasons": " ".join(recovery.reasons) or None,
        }
    )


def _equal(ids: Sequence[int], truth: Sequence[int]) -> list[bool | None]:
    return [one == other for one, other in zip(ids, truth, strict=True)]


def figures(prompts: Sequence[dict[str, Scalar]], positions: Sequence[dict[str, Scalar]]) -> dict[str, Scalar]:
    """Figures over prompts and positions. Where the right tokens are not known, those that need them are None."""

    def known(name: str, rows: Sequence[dict[str, Scalar]]) -> list[float]:
        return [float(row[name]) for row in rows if row[name] is not None]  # type: ignore[arg-type]

    def over(reduce: Callable[[list[float]], Any], name: str, rows: Sequence[dict[str, Scalar]]) -> Scalar:
        found = known(name, rows)
        return float(reduce(found)) if found else None

    tokens = sum(known("tokens", prompts))
    return {
        "exact_rate": over(mean, "exact", prompts),
        "token_accuracy": over(mean, "right", positions),
        "verified_share": sum(known("verified", prompts)) / tokens,
        "tied_share": sum(known("tied", prompts)) / tokens,
        "false_positives": over(sum, "false_positives", prompts),
        "candidates_per_token": over(mean, "tried", positions),
        "candidates_most": over(max, "tried", positions),
        "distance_most": over(max, "distance", [row for row in positions if row["status"] == Status.VERIFIED]),
        "margin_least": over(min, "rival_distance", positions),
        "margin_median": over(median, "rival_distance", positions),
        "noise_survived_least": over(min, "noise_survived", positions),
    }


def _share(value: float) -> str:
    """In per cent, and 100 % only if it is all."""
    return f"{floor(1000 * value) / 10:g}%"


def _finding(result: Result, sites: Sequence[str]) -> str:
    rows = result.tables["prompts"]
    count = len(rows) // len(sites)
    where = sites[0] if len(sites) == 1 else f"{len(sites)} sites, {sites[0]} to {sites[-1]}"
    verified = sum(int(row["verified"] or 0) for row in rows) / sum(int(row["tokens"] or 0) for row in rows)
    many = "the prompt" if count == 1 else f"the {count} prompts"
    tried = mean(float(result.metrics[f"{site}/candidates_per_token"] or 0) for site in sites)
    cost = "1 candidate" if tried == 1 else f"{tried:.3g} candidates"
    if any(row["exact"] is None for row in rows):
        return (
            f"{_share(verified)} of the tokens of {many} are recovered and verified ({where}), with {cost} tried for "
            "each."
        )
    exact = mean(float(bool(row["exact"])) for row in rows)
    wrong = sum(int(row["false_positives"] or 0) for row in rows)
    back = (
        f"{_share(exact)} of the inversions give the whole prompt back exactly"
        if exact < 1
        else f"{many[0].upper()}{many[1:]} came back exactly"
    )
    return (
        f"{back} ({where}); {_share(verified)} of all tokens are verified from the activations alone, "
        f"{wrong or 'none'} of them wrongly, with {cost} tried for each."
    )


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
