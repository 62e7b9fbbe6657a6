"""Decoded representations as table rows: by group, over steps, and poor ones against good ones."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median
from typing import TYPE_CHECKING

from probekit_plugins.repeats import seq_rep
from probekit_plugins.repetition.sources import SAID, Group, Origin, accuracy, decoded
from probekit_plugins.repetition.summary import RandomTokens, Row, Scalar, metrics, row, spread

if TYPE_CHECKING:
    from probekit import Context, Result
    from probekit_plugins.repetition import RepetitionOptions

# A representation is poor where fewer than half of its tokens are the prompt's.
POOR = 0.5


def measure(
    result: Result, origins: Iterable[Origin], options: RepetitionOptions, random: RandomTokens, context: Context
) -> None:
    """Every group of every run, into the tables `decoded`, `decoded_steps` and `quality`, and the metrics."""
    for origin in origins:
        groups = decoded(origin)
        with context.progress(f"decoded sequences, {origin.labels['run']}", len(groups)) as progress:
            for group in groups:
                result.tables.setdefault("decoded", []).append(_group_row(group, options, random))
                result.tables.setdefault("decoded_steps", []).extend(_step_rows(group, random))
                progress.step()
        if groups:
            result.tables.setdefault("quality", []).extend(_quality_rows(origin, groups, random))
    for found in result.tables.get("decoded", []):
        if found["rank"] in (None, 0):
            own = None if found["run"] == "this run" else found["run"]
            parts = [own, found["analysis"], found["name"], found["site"], found["variant"]]
            result.metrics |= metrics("/".join(str(part) for part in parts if part is not None), found, "median")
    for found in result.tables.get("quality", []):
        own = None if found["run"] == "this run" else found["run"]
        parts = [own, found["analysis"], found["variant"], found["quality"]]
        prefix = "/".join(str(part) for part in parts if part is not None)
        result.metrics |= {f"{prefix}/{name}": found[name] for name in _QUALITY}


def _group_row(group: Group, options: RepetitionOptions, random: RandomTokens) -> Row:
    ids = [sequence.ids for sequence in group.sequences]
    accuracies = [accuracy(each, prompt) for each, prompt in zip(ids, group.prompts, strict=True) if prompt]
    known = median(accuracies) if accuracies else None
    return {**group.labels, "token_accuracy": known, **row(ids, group.vocabulary, options, random)}


def _step_rows(group: Group, random: RandomTokens) -> list[Row]:
    """seq-rep-1 over the steps of a descent or a walk."""
    if len(group.steps) < 2:
        return []
    found: list[Row] = []
    for step, sequences in sorted(group.steps.items()):
        figures = spread("seq_rep_1", [seq_rep(sequence.ids, 1) for sequence in sequences])
        expected = [random.of_sequence(len(sequence.ids), group.vocabulary)["seq_rep_1"] or 0 for sequence in sequences]
        labels = {name: group.labels[name] for name in ("run", "analysis", "name", "site", "rank", "variant")}
        found.append({**labels, "step": step, **figures, "seq_rep_1_random": mean(expected)})
    return found


_QUALITY = ("sequences", "seq_rep_1_mean", "seq_rep_1_random", "seq_rep_1_prompt", "above_random", "above_prompt")


def _quality_rows(origin: Origin, groups: Iterable[Group], random: RandomTokens) -> list[Row]:
    """First choices whose prompt is known, by analysis and variant, parted into poor and good ones.

    seq-rep-1 beside random tokens' and the prompt's. What two lists of an analysis both hold, as the end of a descent
    over steps, counts once.
    """
    known: dict[tuple[Scalar, Scalar], dict[object, tuple[list[int], list[int]]]] = {}
    for group in groups:
        if group.labels["rank"] in (None, 0):
            for sequence, prompt in zip(group.sequences, group.prompts, strict=True):
                left_out = ("step", "rank", *SAID)
                labels = {name: value for name, value in sequence.labels.items() if name not in left_out}
                if prompt:
                    kind = (group.labels["analysis"], group.labels["variant"])
                    key = (str(sorted(labels.items())), tuple(sequence.ids))
                    known.setdefault(kind, {}).setdefault(key, (sequence.ids, prompt))
    rows: list[Row] = []
    for (analysis, variant), pairs in known.items():
        for quality in ("poor", "good"):
            chosen = [pair for pair in pairs.values() if (accuracy(*pair) < POOR) == (quality == "poor")]
            own = [seq_rep(ids, 1) or 0.0 for ids, _ in chosen]
            expected = [random.of_sequence(len(ids), origin.vocabulary)["seq_rep_1"] or 0.0 for ids, _ in chosen]
            prompts = [seq_rep(prompt, 1) or 0.0 for _, prompt in chosen]
            if chosen:
                rows.append(
                    {
                        **origin.labels,
                        "analysis": analysis,
                        "variant": variant,
                        "quality": quality,
                        "sequences": len(chosen),
                        "seq_rep_1_mean": mean(own),
                        "seq_rep_1_random": mean(expected),
                        "seq_rep_1_prompt": mean(prompts),
                        "above_random": _share_above(own, expected),
                        "above_prompt": _share_above(own, prompts),
                    }
                )
    return rows


def _share_above(values: list[float], others: list[float]) -> float:
    return mean(float(one > other) for one, other in zip(values, others, strict=True))
