"""How many rows are computed at once, and what that changes: the same analyses with all rows at once, and 1, 2 and 3.

Rows are restarts, walkers, prompts and samples, which have nothing to do with each other. What is left is rounding, as
libraries of matrix products add up in another order for another shape; and in int8, where rows of a batch share what
counts as an outlier, a little more. Nothing is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import probekit
from benchmarks.outcome import Outcome, Series, Settings
from benchmarks.texts import data, missing

ROWS = (1, 2, 3)
TEXTS = ("Once upon a time, there was a", "The sky is blue and the sea", "She said that he")
PRECISIONS: Mapping[str, Mapping[str, str]] = {
    "float32": {"dtype": "float32"},
    "float64": {"dtype": "float64"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
}
MODELS = {"demo": "", "stories260k": "models/stories260k", "tinystories-656k": "models/tinystories-656k"}
WALK = {"sites": "block.1", "walkers": 3, "noise_draws": 2}
INVERTER = {"sites": "block.1", "restarts": 3, "next_token": False}
# Each in little. What a step rounds differently grows from step to step: the gradient of an L1 loss is made of signs.
ANALYSES: Mapping[str, Mapping[str, Any]] = {
    "gradient-inverter": {**INVERTER, "steps": 60},
    "clamped-walk": {**WALK, "steps": 4},
    "orthogonal-walk": {**WALK, "steps": 6},
    "null-space-walk": {**WALK, "steps": 2, "iterations": 8, "correction_iterations": 4},
    "exact-inverter": {"sites": "block.0", "proposals": 1},
    "repetition": {"strategies": ["greedy", "contrastive"], "new_tokens": 6, "text_length": 8, "random_draws": 2},
}
OTHERS = {
    "gradient-inverter, 6 steps": {**INVERTER, "steps": 6},
    "repetition, sampled": {"strategies": ["temperature"], "samples": 3, "new_tokens": 6, "text_length": 8},
}
# Figures that are nothing but rounding where all is well, and those of tokens that another column counts.
LEFT_OUT = ("discrete_losses", "orthogonality", "product", "cosine", "percentile")
OF_ACTIVATIONS = ("activation-statistics", "layer-similarity")
COLUMNS = ["greatest relative difference", "token ids that differ, %"]


def run(settings: Settings) -> Outcome:
    """Every analysis on every model in every precision; quickly, two of them on one model in two precisions."""
    outcome = Outcome("Rows at once")
    precisions = dict(list(PRECISIONS.items())[:2]) if settings.quick else PRECISIONS
    for precision, how in precisions.items():
        rows: list[tuple[str, int, Sequence[float]]] = []
        for name, place in list(MODELS.items())[: 1 if settings.quick else None]:
            folder = data(place) if place else Path(name)
            if folder is None:
                outcome.notes.append(missing(place))
                continue
            for what, at_once, found in measured(str(folder), how, settings.quick):
                rows.append((f"{what}, {name}", at_once, found))
        outcome.series.append(Series(precision, "rows at once", COLUMNS, rows))
    outcome.notes += [
        "Against all rows at once; 0 is bit for bit the same. A difference is that of the tensor of a result that "
        "differs most, relative to its greatest entry.",
        "int8: rows of one batch influence each other, since a column of activations in which one row has an outlier "
        "is computed in 16 bits for all of them.",
        "Samples (repetition, temperature) are drawn for a batch as it stands: other batches are other samples.",
        "The exact inverter's figures that differ are the nearest token that it did not choose and its distance, out "
        "of those tokens that it came to try: with more rows at once it tries more.",
    ]
    return outcome


def measured(model: str, how: Mapping[str, str], quick: bool) -> Iterator[tuple[str, int, Sequence[float]]]:
    """What is computed, how many rows at once, and how far that is from all at once."""
    subject = probekit.load(model, **how)  # type: ignore[arg-type]
    analyses = {name: ANALYSES[name] for name in list(ANALYSES)[: 2 if quick else None]}
    for name, options in analyses.items():
        yield from against_all(name, lambda rows, name=name, options=options: found(subject, name, options, rows))
    if not quick:
        for what, options in OTHERS.items():
            name = what.partition(",")[0]
            yield from against_all(what, lambda rows, name=name, options=options: found(subject, name, options, rows))
        for name in OF_ACTIVATIONS:
            yield from against_all(name, lambda rows, name=name: of_recording(model, how, name, rows))


def against_all(what: str, compute: Any) -> Iterator[tuple[str, int, Sequence[float]]]:
    """Each number of rows at once against all of them."""
    expected = compute(None)
    for rows in ROWS:
        yield what, rows, differences(compute(rows), expected)


def found(
    subject: probekit.Subject, name: str, options: Mapping[str, Any], rows: int | None, count: int = len(TEXTS)
) -> probekit.Result:
    """What an analysis finds, so many rows at once, with the seed 0."""
    analysis = probekit.Plugins().analysis(name)
    given = analysis.options_model(**options, **({} if rows is None else {"rows_at_once": rows}))
    prompts = [
        probekit.Prompt(text, ids, [str(index) for index in ids[0].tolist()])
        for text in TEXTS[:count]
        for ids in [subject.encode(text)]
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = analysis(given, probekit.Context(0, name)).run(subject, prompts)
    assert isinstance(result, probekit.Result)
    return result


def of_recording(model: str, how: Mapping[str, str], name: str, rows: int | None) -> probekit.Result:
    """What an analysis of activations finds in a recording of which so many prompts were computed at once."""
    longest = max(prompt.input_ids.shape[1] for prompt in _encoded(model))
    with tempfile.TemporaryDirectory() as folder:
        place, bound = Path(folder), None if rows is None else rows * longest
        recording = place / "recording"
        probekit.record({"name": model, **how}, TEXTS, "blocks", recording, batch_tokens=bound)
        done = probekit.run(plugins=name, activations=recording, output=place / "run")
        return done.result


def _encoded(model: str) -> list[probekit.Prompt]:
    subject = probekit.load(model)
    return [probekit.Prompt(text, subject.encode(text), []) for text in TEXTS]


def differences(result: probekit.Result, expected: probekit.Result) -> tuple[float, float]:
    """The greatest relative difference of a tensor of fractions, and the share of token ids that differ, in per cent:
    of all in the named sequences.
    """
    greatest = 0.0
    for name, tensor in expected.tensors.items():
        was, now = torch.as_tensor(tensor), torch.as_tensor(result.tensors[name])
        if was.shape != now.shape:
            greatest = max(greatest, 1.0)  # such as a histogram of other bins
            continue
        if was.is_floating_point() and was.numel() and not name.endswith(LEFT_OUT):
            scale = was.double().abs().max().item()
            greatest = max(greatest, (now.double() - was.double()).abs().max().item() / (scale or 1.0))
    ids = [
        (one, other)
        for name, group in expected.sequences.items()
        if name != "vocabulary"  # which tokens a table names
        for sequence, again in zip(group, result.sequences[name], strict=True)
        for one, other in zip(sequence.ids, again.ids, strict=True)
    ]
    return greatest, 100 * sum(one != other for one, other in ids) / max(1, len(ids))
