"""Text that the model generates: each prompt continued by each strategy, all continuations of the same length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from probekit import UsageError
from probekit_plugins.batches import Batches
from probekit_plugins.penalties import LiteralPenalty
from probekit_plugins.repetition.contrastive import contrastive_search
from probekit_plugins.writing import PLAIN, SAMPLING

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.repetition import RepetitionOptions

Texts = dict[tuple[str, int], torch.Tensor]


def check_lengths(subject: Subject, prompts: Sequence[Prompt], options: RepetitionOptions) -> None:
    """Raise UsageError with one sentence if a prompt and its continuation are longer than the model's context."""
    for number, prompt in enumerate(prompts, 1):
        length = len(prompt.tokens)
        if subject.context is not None and length + options.new_tokens > subject.context:
            room = subject.context - length
            advice = f"generate at most {room} (-o new_tokens={room})" if room else "shorten the prompt"
            raise UsageError(
                f"Prompt {number} has {length} tokens and {options.new_tokens} more are to be generated, but the "
                f"model's context is {subject.context}; {advice}."
            )


def settings(strategy: str, prompt_length: int, options: RepetitionOptions) -> tuple[dict[str, Any], list[Any]]:
    """What a strategy is for transformers: its generation settings and logits processors.

    The token that would end a text is never generated, so that all continuations have the same length.
    """
    length = {"max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens}
    greedy: dict[str, Any] = {**PLAIN, **length, "do_sample": False}
    sampling: dict[str, Any] = {**PLAIN, **length, **SAMPLING}
    if strategy in ("ctrl", "ctrl-literal"):
        T = options.ctrl_temperature
        literal = LiteralPenalty(options.penalty, prompt_length)
        penalty = RepetitionPenaltyLogitsProcessor(options.penalty, prompt_ignore_length=prompt_length)
        return {**sampling, "temperature": T} if T else greedy, [literal if strategy == "ctrl-literal" else penalty]
    chosen = {
        "greedy": greedy,
        "temperature": {**sampling, "temperature": options.temperature},
        "top-k": {**sampling, "top_k": options.top_k},
        "nucleus": {**sampling, "top_p": options.top_p},
        "beam": {**greedy, "num_beams": options.beams, "length_penalty": 0.0, "early_stopping": False},
    }
    return chosen[strategy], []


class Generation:
    """Continuations of prompts by one model; `stage` tells them apart in a run that tunes copies of its model.

    The seeds are the same at every stage: what differs is the model.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        options: RepetitionOptions,
        context: Context,
        stage: str,
        batches: Batches | None = None,
    ) -> None:
        self._subject, self._prompts, self._options = subject, prompts, options
        self._context, self._stage = context, stage
        self._batches = batches or Batches(context, options)

    def texts(self) -> Texts:
        """(strategy, number of the prompt) → `[samples, new tokens]`, on the CPU; one sample where nothing is drawn."""
        found: Texts = {}
        strategies = list(dict.fromkeys(self._options.strategies))
        with self._context.progress(self._label("generation"), len(self._prompts) * len(strategies)) as progress:
            for number, prompt in enumerate(self._prompts):
                for strategy in strategies:
                    found[strategy, number] = self._continued(strategy, number, prompt.input_ids)
                    progress.step()
        return found

    def _label(self, what: str) -> str:
        return what if self._stage == "before" else f"{what}, {self._stage}"

    def _continued(self, strategy: str, number: int, ids: torch.Tensor) -> torch.Tensor:
        where = f"{self._stage}/{strategy}/prompt {number}"
        sampled = bool(settings(strategy, 0, self._options)[0]["do_sample"]) if strategy != "contrastive" else False
        count = self._options.samples if sampled else 1

        def rows(chosen: slice) -> torch.Tensor:
            size = chosen.stop - chosen.start
            key = f"generated/{where}/rows {chosen.start} to {chosen.stop}"
            seeded = f"{strategy}/prompt {number}/rows {chosen.start} to {chosen.stop}"
            return self._context.stage(key, lambda: {"ids": self._batch(strategy, ids, size, seeded, key)})["ids"]

        return self._batches.joined(count, rows, where)

    def _batch(self, strategy: str, ids: torch.Tensor, rows: int, seeded: str, key: str) -> torch.Tensor:
        options, length = self._options, ids.shape[1]
        if strategy == "contrastive":
            with self._context.loop(self._label("contrastive search"), options.new_tokens, key) as loop:
                found = contrastive_search(
                    self._subject,
                    ids,
                    options.new_tokens,
                    options.contrastive_k,
                    options.contrastive_alpha,
                    loop,
                    self._batches,
                )
        else:
            chosen, processors = settings(strategy, length, options)
            seed = int(torch.randint(2**62, (1,), generator=self._context.generator(seeded)))
            found = self._subject.generate(ids.expand(rows, -1), seed, processors, **chosen)
        return found[:, length:]
