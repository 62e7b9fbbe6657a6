"""The analysis in its order: given, generated and decoded sequences, saved runs, fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from probekit import Result, UsageError
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.repetition import predictions
from probekit_plugins.repetition.finetuning import FineTuning, check
from probekit_plugins.repetition.generation import check_lengths
from probekit_plugins.repetition.outcome import SOURCES, STAGES
from probekit_plugins.repetition.sources import decoded, encoded, saved, this_run
from probekit_plugins.repetition.texts import piece_length
from probekit_plugins.repetition.written import Written, keep_given, keep_written, write
from probekit_plugins.texts import beginning
from probekit_plugins.writing import can_generate

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.repetition import RepetitionOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: RepetitionOptions, context: Context) -> Result:
    """What is measured of every source of sequences. Raises UsageError with one sentence before anything long is
    begun.
    """
    numbers = {"seed": context.seed, "vocabulary": subject.vocabulary, "blocks": len(subject.anatomy.blocks)}
    result = Result(tensors={name: torch.tensor(number) for name, number in numbers.items()})
    options = _usable(subject, options, result)
    if options.strategies:
        check_lengths(subject, prompts, options)
    if options.text is not None:
        piece_length(subject, options)
    if options.unlikelihood_steps:
        check(subject, options)
    origins = [this_run(subject, context.results), *saved(options.source, subject)]
    result.files[SOURCES] = encoded(origins, predictions.columns_of(options.windows))
    batches = Batches(context, options)
    keep_given(result, subject, prompts, options, context, batches)
    if options.strategies:
        written = write(subject, prompts, options, context, "before", batches)
        keep_written(result, written, subject, prompts, "before", options)
    if options.unlikelihood_steps:
        _fine_tune(result, subject, prompts, options, context, batches)
    _notes(result, subject, options, any(decoded(origin) for origin in origins))
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
    options: RepetitionOptions,
    context: Context,
    batches: Batches,
) -> None:
    """The model before, after MLE alone and with unlikelihood: its texts, and its predictions along held-out pieces."""
    tuning = FineTuning(subject, prompts[0], options, context, batches)
    start = len(beginning(subject)) or 1

    def held_out(model: Subject, stage: str) -> dict[str, torch.Tensor]:
        sums = predictions.measure(model, tuning.held_out, start, options.windows, batches, f"held out, {stage}")
        return {"held_out": predictions.stacked([sums], options.windows)}

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
            keep_written(result, Written.read(kept[stage]), subject, prompts, stage, options)
    result.tensors |= {f"held_out/{stage}": tensors["held_out"] for stage, tensors in kept.items()}
    result.tensors["training_pieces"] = torch.tensor(tuning.sizes[0])


def _notes(result: Result, subject: Subject, options: RepetitionOptions, has_decoded: bool) -> None:
    if options.strategies:
        result.notes.append(
            "The token that would end a text is never generated, so that all texts have the same length; a model that "
            "wanted to end may repeat itself for that reason alone."
        )
    if has_decoded:
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
