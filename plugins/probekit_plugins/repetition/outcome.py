"""From what was measured to figures: tables, metrics and the finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING

from probekit import Context
from probekit_plugins.repetition import decoded, predictions
from probekit_plugins.repetition.figures import of_sequence
from probekit_plugins.repetition.sources import OURS, Labels, Origin, read
from probekit_plugins.repetition.summary import RandomTokens, Row, metrics, row

if TYPE_CHECKING:
    from probekit import Result, TokenSequence
    from probekit_plugins.repetition import RepetitionOptions

# The file of a result with the sequences of other analyses and of saved runs.
SOURCES = "sources.json"
# The finding names so many kinds of decoded sequences, those with the most sequences.
MOST_NAMED = 4
# The copies of the model that are tuned, by the name of their stage.
STAGES = ("mle", "unlikelihood")


def figured(measured: Result, options: RepetitionOptions, context: Context) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, its sequences and its sources.

    Random tokens are drawn again, from the seed among the tensors; `context` shows progress.
    """
    numbers = {name: int(measured.tensors[name].item()) for name in ("vocabulary", "blocks", "seed")}
    random = RandomTokens(options, Context(numbers.pop("seed"), OURS))
    result = replace(measured, tables={}, metrics=dict(numbers))
    content = measured.files[SOURCES]
    here, *others = read(content if isinstance(content, bytes) else content.read_bytes())
    _given(result, "prompts", measured.sequences["prompt"], options, random)
    _given(result, "text", measured.sequences.get("text", []), options, random)
    _generated(result, here.labels, "before", options, random)
    decoded.measure(result, [here, *others], options, random, context)
    if options.unlikelihood_steps:
        for stage in STAGES:
            _generated(result, here.labels, stage, options, random)
        _fine_tuning(result, options)
    _of_saved_runs(result, others, options, random)
    result.finding = _finding(result, options)
    return result


def _given(
    result: Result, kind: str, given: Sequence[TokenSequence], options: RepetitionOptions, random: RandomTokens
) -> None:
    """The prompts themselves, or the pieces of the text."""
    if not given:
        return
    tensors, sums, by_chance = result.tensors, [], []
    if f"predicted/{kind}" in tensors:  # a model without logits predicts nothing
        sums = [predictions.unstacked(tensors[f"predicted/{kind}"], options.windows)]
        by_chance = [predictions.unstacked(tensors[f"predicted/{kind}/random"], options.windows)]
    for number, sequence in enumerate(given):
        own: Labels = {"kind": kind, "strategy": None, "prompt": number, "sample": None, "stage": None}
        _store_text(result, sequence, own, predictions.of_row(sums[0], number) if sums else {}, options)
    found = row([sequence.ids for sequence in given], int(result.metrics["vocabulary"] or 0), options, random)
    predicted = predictions.means(sums)
    found |= predicted | {f"{name}_random": value for name, value in predictions.means(by_chance).items()}
    result.tables.setdefault("given", []).append({"text": kind, **found})
    result.metrics |= metrics(kind, found) | {f"{kind}/{name}": value for name, value in predicted.items()}


def _generated(result: Result, labels: Labels, stage: str, options: RepetitionOptions, random: RandomTokens) -> None:
    """A row for each text of a model, and one for each strategy."""
    texts: dict[str, list[TokenSequence]] = {}
    for sequence in result.sequences.get("generated", []):
        if sequence.labels["stage"] == stage:
            texts.setdefault(str(sequence.labels["strategy"]), []).append(sequence)
    for strategy, every in texts.items():
        sums, by_chance = (
            predictions.unstacked(result.tensors[f"predicted/{stage}/{name}"], options.windows)
            for name in (strategy, "random")
        )
        for number, sequence in enumerate(every):
            own = {name: sequence.labels[name] for name in ("strategy", "prompt", "sample", "stage")}
            _store_text(result, sequence, {"kind": "generated", **own}, predictions.of_row(sums, number), options)
        found = row([sequence.ids for sequence in every], int(result.metrics["vocabulary"] or 0), options, random)
        predicted = predictions.means([sums])
        found |= predicted | {f"{name}_random": value for name, value in predictions.means([by_chance]).items()}
        where = {**labels, "stage": stage, "strategy": strategy}
        result.tables.setdefault("generated", []).append({**where, **found})
        prefix = strategy if stage == "before" else f"{stage}/{strategy}"
        result.metrics |= metrics(prefix, found) | {f"{prefix}/{name}": value for name, value in predicted.items()}


def _store_text(
    result: Result, sequence: TokenSequence, labels: Row, predicted: dict[str, float | None], options: RepetitionOptions
) -> None:
    found = {**labels, **of_sequence(sequence.ids, options.drop_last), **predicted}
    result.tables.setdefault("texts", []).append({**found, "text": sequence.labels["text"]})


def _fine_tuning(result: Result, options: RepetitionOptions) -> None:
    """What the model predicts along held-out pieces before, after MLE alone and with unlikelihood."""
    pieces = (result.tensors["training_pieces"].item(), len(result.tensors["held_out/before"]))
    result.metrics |= dict(zip(("training_pieces", "held_out_pieces"), pieces, strict=True))
    for stage in ("before", *STAGES):
        found = predictions.means([predictions.unstacked(result.tensors[f"held_out/{stage}"], options.windows)])
        result.tables.setdefault("fine_tuning", []).append({"stage": stage, **found})
        result.metrics |= {f"held out {stage}/{name}": value for name, value in found.items()}


def _of_saved_runs(result: Result, origins: Iterable[Origin], options: RepetitionOptions, random: RandomTokens) -> None:
    """What saved runs generated; what their models predicted along it is taken from them."""
    for origin in origins:
        ours = origin.results.get(OURS)
        if ours is None:
            continue
        groups: dict[tuple[str, str], list[list[int]]] = {}
        for sequence in ours.sequences.get("generated", []):
            key = (str(sequence.labels.get("strategy")), str(sequence.labels.get("stage")))
            groups.setdefault(key, []).append(sequence.ids)
        for (strategy, stage), every in groups.items():
            found = row(every, origin.vocabulary, options, random)
            theirs = [
                row
                for row in ours.tables.get("generated", [])
                if (row.get("run"), row.get("strategy"), row.get("stage")) == ("this run", strategy, stage)
            ]
            if theirs:
                found |= {name: theirs[0].get(name) for name in predictions.columns_of(options.windows)}
            labels = {**origin.labels, "stage": stage, "strategy": strategy}
            result.tables.setdefault("generated", []).append({**labels, **found})
            middle = "" if stage == "before" else f"{stage}/"
            result.metrics |= metrics(f"{origin.labels['run']}/{middle}{strategy}", found)


def _finding(result: Result, options: RepetitionOptions) -> str:
    """One sentence for each kind of source that there was."""
    sentences = []
    rows = [row for row in result.tables.get("generated", []) if row["run"] == "this run" and row["stage"] == "before"]
    present = [row for row in rows if row["seq_rep_4_mean"] is not None]
    if present:
        shown = ", ".join(f"{row['strategy']} {row['seq_rep_4_mean']:.2f}" for row in present)
        by_chance = mean(float(row["seq_rep_4_random"] or 0) for row in present)
        sentences.append(
            f"Share of repeated 4-grams in {options.new_tokens} generated tokens: {shown} "
            f"(random tokens {by_chance:.2f})."
        )
    poor = [row for row in result.tables.get("quality", []) if row["quality"] == "poor"]
    if poor:
        poor.sort(key=lambda row: -int(row["sequences"] or 0))
        shown = ", ".join(
            f"{_origin(row)} {row['seq_rep_1_mean']:.2f} (random tokens {row['seq_rep_1_random']:.2f}, the prompts "
            f"{row['seq_rep_1_prompt']:.2f})"
            for row in poor[:MOST_NAMED]
        )
        sentences.append(f"Repeated tokens in decoded sequences with fewer than half of the prompt's: {shown}.")
    known = result.metrics
    if options.unlikelihood_steps and known.get("greedy/seq_rep_4_mean") is not None:
        mle, tuned = (known[f"{stage}/greedy/seq_rep_4_mean"] for stage in STAGES)
        sentences.append(
            f"Unlikelihood takes the greedy text's share from {known['greedy/seq_rep_4_mean']:.2f} to {tuned:.2f} in "
            f"{options.unlikelihood_steps} steps, the same steps without it to {mle:.2f}."
        )
    if not sentences and known.get("prompts/seq_rep_1_mean") is not None:
        sentences.append(
            f"Of the prompts' own tokens {known['prompts/seq_rep_1_mean']:.2f} stood before, in random tokens "
            f"{known['prompts/seq_rep_1_random']:.2f}."
        )
    return " ".join(sentences)


def _origin(row: Row) -> str:
    parts = (None if row["run"] == "this run" else row["run"], row["analysis"], row["variant"])
    return " · ".join(str(part) for part in parts if part is not None)
