"""What is measured of text: what the model generates and what it is given, and its predictions along both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.head import predicted_tokens
from probekit_plugins.repetition import predictions
from probekit_plugins.repetition.generation import Generation, Texts
from probekit_plugins.repetition.predictions import Sums
from probekit_plugins.repetition.sources import Labels
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


def keep_written(
    result: Result,
    written: Written,
    subject: Subject,
    prompts: Sequence[Prompt],
    stage: str,
    options: RepetitionOptions,
) -> None:
    """A model's texts as sequences, by strategy, prompt and sample; and what it predicted along them, and along random
    tokens, as tensors.
    """
    numbers = range(len(prompts))
    for strategy in dict.fromkeys(options.strategies):
        for number in numbers:
            for sample, ids in enumerate(written.texts[strategy, number].tolist()):
                own: Labels = {"strategy": strategy, "prompt": number, "sample": sample, "stage": stage}
                result.sequences.setdefault("generated", []).append(_text(subject, ids, own))
    for name in (*dict.fromkeys(options.strategies), RANDOM):
        sums = [written.sums[name, number] for number in numbers]
        result.tensors[f"predicted/{stage}/{name}"] = predictions.stacked(sums, options.windows)


def keep_given(
    result: Result,
    subject: Subject,
    prompts: Sequence[Prompt],
    options: RepetitionOptions,
    context: Context,
    batches: Batches,
) -> None:
    """The prompts themselves, and the pieces of the text if there is one: as sequences, and what the model predicts
    along them, and along random tokens, as tensors.
    """
    can_predict = subject.has_logits
    sums, by_chance = [], []
    for number, prompt in enumerate(prompts):
        ids = prompt.input_ids[0].tolist()
        result.sequences.setdefault("prompt", []).append(_text(subject, ids, {"prompt": number}, prompt.tokens))
        if can_predict:
            first, rest = prompt.input_ids[:, :1], prompt.input_ids[:, 1:].cpu()
            chance = _random(subject, (1, rest.shape[1]), options, context)
            two, key = torch.cat([rest, chance]), f"given prompt {number}"
            found = _predicted(subject, first, two, options, context, key, batches)
            sums.append({name: values[:1] for name, values in found.items()})
            by_chance.append({name: values[1:] for name, values in found.items()})
    _keep_predicted(result, "prompts", sums, by_chance, options)
    if options.text is None:
        return
    pieces = spread_over(pieces_of_file(subject, options), options.text_pieces)
    begin = len(beginning(subject))

    def predicted(of: torch.Tensor, key: str) -> list[Sums]:
        whole, start = begun(subject, of), begin or 1
        return [context.stage(key, lambda: predictions.measure(subject, whole, start, options.windows, batches, key))]

    chance = _random(subject, (begin, pieces.shape[1]), options, context)
    for number, piece in enumerate(pieces.tolist()):
        result.sequences.setdefault("text", []).append(_text(subject, piece, {"piece": number}))
    if can_predict:
        _keep_predicted(result, "text", predicted(pieces, "given text"), predicted(chance, "random text"), options)


def _keep_predicted(
    result: Result, kind: str, sums: Sequence[Sums], by_chance: Sequence[Sums], options: RepetitionOptions
) -> None:
    if sums:
        result.tensors[f"predicted/{kind}"] = predictions.stacked(sums, options.windows)
        result.tensors[f"predicted/{kind}/{RANDOM}"] = predictions.stacked(by_chance, options.windows)


def _text(subject: Subject, ids: list[int], labels: Labels, tokens: list[str] | None = None) -> TokenSequence:
    return TokenSequence(ids, tokens or subject.tokens(ids), {**labels, "text": subject.text(ids)})
