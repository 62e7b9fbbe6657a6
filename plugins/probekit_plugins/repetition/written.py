"""Text as table rows: what the model generates, what it is given, and what saved runs generated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.head import predicted_tokens
from probekit_plugins.repetition import predictions
from probekit_plugins.repetition.figures import of_sequence
from probekit_plugins.repetition.generation import Generation, Texts
from probekit_plugins.repetition.predictions import Sums
from probekit_plugins.repetition.sources import OURS, Labels, Origin
from probekit_plugins.repetition.summary import RandomTokens, Row, metrics, row
from probekit_plugins.repetition.texts import pieces_of_file
from probekit_plugins.texts import beginning, begun, spread_over

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.repetition import RepetitionOptions

# Random texts whose predictions are measured: each costs the model a forward.
RANDOM_TEXTS = 8
# Where one place of a `Written` holds what random tokens come to instead of a strategy's texts.
RANDOM = "random"


@dataclass
class Written:
    """What a model wrote by (strategy, prompt), and sums of its predictions along that, and along random tokens."""

    texts: Texts
    sums: dict[tuple[str, int], Sums]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything under one name each, for a stage of the run."""
        found = {f"text/{strategy}/{number}": ids for (strategy, number), ids in self.texts.items()}
        for (strategy, number), sums in self.sums.items():
            found |= {f"sums/{strategy}/{number}/{figure}": values for figure, values in sums.items()}
        return found

    @classmethod
    def read(cls, tensors: Mapping[str, torch.Tensor]) -> Written:
        """The same from its tensors."""
        found = cls({}, {})
        for name, values in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "text":
                strategy, number = rest.split("/")
                found.texts[strategy, int(number)] = values
            elif kind == "sums":
                strategy, number, figure = rest.split("/")
                found.sums.setdefault((strategy, int(number)), {})[figure] = values
        return found


def write(
    subject: Subject,
    prompts: Sequence[Prompt],
    options: RepetitionOptions,
    context: Context,
    stage: str,
    batches: Batches,
) -> Written:
    """Continue every prompt by every strategy, and see what the model predicts along what it wrote."""
    written = Written(Generation(subject, prompts, options, context, stage, batches).texts(), {})
    strategies = list(dict.fromkeys(options.strategies))
    for number, prompt in enumerate(prompts):
        rows: dict[str, torch.Tensor] = {strategy: written.texts[strategy, number] for strategy in strategies}
        rows[RANDOM] = _random(subject, (len(prompt.tokens), options.new_tokens), options, context)
        every = torch.cat(list(rows.values()))
        sums = _predicted(subject, prompt.input_ids, every, options, context, f"{stage}/{number}", batches)
        first = 0
        for strategy, ids in rows.items():
            written.sums[strategy, number] = {name: all_[first : first + len(ids)] for name, all_ in sums.items()}
            first += len(ids)
    return written


def _random(subject: Subject, lengths: tuple[int, int], options: RepetitionOptions, context: Context) -> torch.Tensor:
    generator = context.generator(f"random texts/{lengths}")
    shape = (min(options.random_draws, RANDOM_TEXTS), lengths[1])
    return torch.randint(predicted_tokens(subject), shape, generator=generator)


def _predicted(
    subject: Subject,
    before: torch.Tensor,
    ids: torch.Tensor,
    options: RepetitionOptions,
    context: Context,
    key: str,
    batches: Batches,
) -> Sums:
    """Sums of predictions along `ids` `[rows, T]`, after `before` `[1, T']`."""
    whole = torch.cat([before.expand(len(ids), -1), ids.to(before.device)], 1)
    start = before.shape[1]
    key = f"predictions/{key}"
    return context.stage(key, lambda: predictions.measure(subject, whole, start, options.windows, batches, key))


def store_written(
    result: Result,
    written: Written,
    subject: Subject,
    prompts: Sequence[Prompt],
    labels: Labels,
    options: RepetitionOptions,
    random: RandomTokens,
) -> None:
    """A model's texts as sequences, a row for each text and one for each strategy; `labels` hold the stage."""
    stage = labels["stage"]
    strategies = list(dict.fromkeys(options.strategies))
    numbers = range(len(prompts))
    by_chance = predictions.means([written.sums[RANDOM, number] for number in numbers])
    for strategy in strategies:
        every: list[list[int]] = []
        for number in numbers:
            for sample, ids in enumerate(written.texts[strategy, number].tolist()):
                every.append(ids)
                own: Labels = {"strategy": strategy, "prompt": number, "sample": sample, "stage": stage}
                result.sequences.setdefault("generated", []).append(TokenSequence(ids, subject.tokens(ids), own))
                predicted = predictions.of_row(written.sums[strategy, number], sample)
                _store_text(result, subject, {"kind": "generated", **own}, ids, predicted, options)
        found = row(every, subject.vocabulary, options, random)
        predicted = predictions.means([written.sums[strategy, number] for number in numbers])
        found |= predicted | {f"{name}_random": value for name, value in by_chance.items()}
        result.tables.setdefault("generated", []).append({**labels, "strategy": strategy, **found})
        prefix = strategy if stage == "before" else f"{stage}/{strategy}"
        result.metrics |= metrics(prefix, found) | {f"{prefix}/{name}": value for name, value in predicted.items()}


def store_saved(result: Result, origins: Iterable[Origin], options: RepetitionOptions, random: RandomTokens) -> None:
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
            for name in predictions.names(options.windows) if theirs else []:
                found |= {each: theirs[0].get(each) for each in (name, f"{name}_random")}
            labels = {**origin.labels, "stage": stage, "strategy": strategy}
            result.tables.setdefault("generated", []).append({**labels, **found})
            middle = "" if stage == "before" else f"{stage}/"
            result.metrics |= metrics(f"{origin.labels['run']}/{middle}{strategy}", found)


def measure_given(
    result: Result,
    subject: Subject,
    prompts: Sequence[Prompt],
    options: RepetitionOptions,
    random: RandomTokens,
    context: Context,
    batches: Batches,
) -> None:
    """The prompts themselves, and the pieces of the text if there is one."""
    can_predict = subject.has_logits
    ids = [prompt.input_ids[0].tolist() for prompt in prompts]
    sums, by_chance = [], []
    for number, prompt in enumerate(prompts):
        labels: Labels = {"prompt": number}
        result.sequences.setdefault("prompt", []).append(TokenSequence(ids[number], prompt.tokens, labels))
        if can_predict:
            first, rest = prompt.input_ids[:, :1], prompt.input_ids[:, 1:].cpu()
            chance = _random(subject, (1, rest.shape[1]), options, context)
            two, key = torch.cat([rest, chance]), f"given prompt {number}"
            found = _predicted(subject, first, two, options, context, key, batches)
            sums.append({name: values[:1] for name, values in found.items()})
            by_chance.append({name: values[1:] for name, values in found.items()})
    _store_given(result, subject, "prompts", ids, (sums, by_chance), options, random)
    if options.text is None:
        return
    pieces = spread_over(pieces_of_file(subject, options), options.text_pieces)
    begin = len(beginning(subject))

    def predicted(of: torch.Tensor, key: str) -> list[Sums]:
        whole, start = begun(subject, of), begin or 1
        return [context.stage(key, lambda: predictions.measure(subject, whole, start, options.windows, batches, key))]

    chance = _random(subject, (begin, pieces.shape[1]), options, context)
    both = (predicted(pieces, "given text"), predicted(chance, "random text")) if can_predict else ([], [])
    for number, piece in enumerate(pieces.tolist()):
        result.sequences.setdefault("text", []).append(TokenSequence(piece, subject.tokens(piece), {"piece": number}))
    _store_given(result, subject, "text", pieces.tolist(), both, options, random)


def _store_given(
    result: Result,
    subject: Subject,
    kind: str,
    every: Sequence[list[int]],
    predicted: tuple[Sequence[Sums], Sequence[Sums]],
    options: RepetitionOptions,
    random: RandomTokens,
) -> None:
    sums, by_chance = predicted
    rows = [predictions.of_row(part, index) for part in sums for index in range(len(part["count"]))]
    for number, ids in enumerate(every):
        own: Labels = {"kind": kind, "strategy": None, "prompt": number, "sample": None, "stage": None}
        _store_text(result, subject, own, ids, rows[number] if rows else {}, options)
    found = row(every, subject.vocabulary, options, random)
    found |= predictions.means(sums) | {f"{name}_random": value for name, value in predictions.means(by_chance).items()}
    result.tables.setdefault("given", []).append({"text": kind, **found})
    result.metrics |= metrics(kind, found) | {
        f"{kind}/{name}": value for name, value in predictions.means(sums).items()
    }


def _store_text(
    result: Result,
    subject: Subject,
    labels: Row,
    ids: list[int],
    predicted: Mapping[str, float | None],
    options: RepetitionOptions,
) -> None:
    found: Row = {**labels, **of_sequence(ids, options.drop_last), **predicted, "text": subject.text(ids)}
    result.tables.setdefault("texts", []).append(found)
