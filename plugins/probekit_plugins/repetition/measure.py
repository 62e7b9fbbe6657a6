"""The analysis in its order: given, generated and decoded sequences, saved runs, fine-tuning; and its finding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

from probekit import Result, UsageError
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.repetition import decoded, predictions
from probekit_plugins.repetition.finetuning import FineTuning, check
from probekit_plugins.repetition.generation import check_lengths
from probekit_plugins.repetition.sources import saved, this_run
from probekit_plugins.repetition.summary import RandomTokens, Row
from probekit_plugins.repetition.texts import piece_length
from probekit_plugins.repetition.written import Written, measure_given, store_saved, store_written, write
from probekit_plugins.texts import beginning
from probekit_plugins.writing import can_generate

if TYPE_CHECKING:
    import torch

    from probekit import Context, Prompt, Subject
    from probekit_plugins.repetition import RepetitionOptions

# The finding names so many kinds of decoded sequences, those with the most sequences.
MOST_NAMED = 4
# The copies of the model that are tuned, by the name of their stage.
STAGES = ("mle", "unlikelihood")


def run(subject: Subject, prompts: Sequence[Prompt], options: RepetitionOptions, context: Context) -> Result:
    """Measure every source of sequences. Raises UsageError with one sentence before anything long is begun."""
    result = Result(metrics={"vocabulary": subject.vocabulary, "blocks": len(subject.anatomy.blocks)})
    options = _usable(subject, options, result)
    if options.strategies:
        check_lengths(subject, prompts, options)
    if options.text is not None:
        piece_length(subject, options)
    if options.unlikelihood_steps:
        check(subject, options)
    here, others = this_run(subject, context.results), saved(options.source, subject)
    random = RandomTokens(options, context)
    batches = Batches(context, options)
    measure_given(result, subject, prompts, options, random, context, batches)
    before = Written({}, {})
    if options.strategies:
        before = write(subject, prompts, options, context, "before", batches)
        store_written(result, before, subject, prompts, {**here.labels, "stage": "before"}, options, random)
    decoded.measure(result, [here, *others], options, random, context)
    if options.unlikelihood_steps:
        _fine_tune(result, subject, prompts, here.labels, options, random, context, batches)
    store_saved(result, others, options, random)
    result.finding = _finding(result, options)
    _notes(result, subject, options)
    result.notes += batches.notes()
    return result


def _usable(subject: Subject, options: RepetitionOptions, result: Result) -> RepetitionOptions:
    """Without strategies where the model cannot generate and nobody asked for it. Raises UsageError if somebody did."""
    if can_generate(subject) or not options.strategies:
        return options
    if "strategies" in options.model_fields_set:
        raise UsageError(
            f"{type(subject.model).__name__} does not generate text; give one that does, or leave generation out "
            "(-o 'strategies=[]')."
        )
    result.notes.append(f"{type(subject.model).__name__} does not generate text, so none is measured.")
    return options.model_copy(update={"strategies": []})


def _fine_tune(
    result: Result,
    subject: Subject,
    prompts: Sequence[Prompt],
    labels: dict[str, str | int | float | bool | None],
    options: RepetitionOptions,
    random: RandomTokens,
    context: Context,
    batches: Batches,
) -> None:
    """The model before, after MLE alone and with unlikelihood: its texts, and its losses on held-out pieces."""
    tuning = FineTuning(subject, prompts[0], options, context, batches)
    start = len(beginning(subject)) or 1

    def held_out(model: Subject, stage: str) -> dict[str, torch.Tensor]:
        sums = predictions.measure(model, tuning.held_out, start, options.windows, batches, f"held out, {stage}")
        return {f"held_out/{name}": values for name, values in sums.items()}

    def tuned(stage: str) -> dict[str, torch.Tensor]:
        alpha = options.unlikelihood_alpha if stage == "unlikelihood" else 0.0
        model, losses = tuning.tuned(alpha, stage)
        found = {"losses": losses, **held_out(model, stage)}
        return found | (write(model, prompts, options, context, stage, batches).tensors() if options.strategies else {})

    kept = {"before": context.stage("held out before", lambda: held_out(subject, "before"))}
    for stage in STAGES:
        kept[stage] = context.stage(f"fine-tuned {stage}", partial(tuned, stage))
        result.tensors[f"losses/{stage}"] = kept[stage]["losses"]
        if options.strategies:
            where = {**labels, "stage": stage}
            store_written(result, Written.read(kept[stage]), subject, prompts, where, options, random)
    result.metrics |= dict(zip(("training_pieces", "held_out_pieces"), tuning.sizes, strict=True))
    for stage, tensors in kept.items():
        sums = {name.partition("/")[2]: values for name, values in tensors.items() if name.startswith("held_out/")}
        found = predictions.means([sums])
        result.tables.setdefault("fine_tuning", []).append({"stage": stage, **found})
        result.metrics |= {f"held out {stage}/{name}": value for name, value in found.items()}


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


def _notes(result: Result, subject: Subject, options: RepetitionOptions) -> None:
    if options.strategies:
        result.notes.append(
            "The token that would end a text is never generated, so that all texts have the same length; a model that "
            "wanted to end may repeat itself for that reason alone."
        )
    if result.tables.get("decoded"):
        result.notes.append(
            "Self-BLEU and distinct-n compare the sequences of a group with each other: decoded sequences that all "
            "recover the same prompt are alike without repeating anything."
        )
    if options.unlikelihood_steps and options.text is None:
        result.notes.append(
            "No text was given, so the copies were tuned on text that the model wrote itself at temperature 1: that "
            "cannot make it better, only different."
        )
    dtype = next(subject.model.parameters()).dtype
    if options.unlikelihood_steps and str(dtype) not in ("torch.float32", "torch.float64"):
        result.notes.append("The copies were tuned, and then measured, in fp32: compare them with each other.")
    result.notes += notes_on_rows(subject)
