"""A whole run: likelihoods under each code, attribution, fine-tuning if there are steps, and text under each code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit import Result
from probekit_plugins.batches import Batches, notes_on_rows
from probekit_plugins.control_codes import finetuning, likelihood, measured, saved
from probekit_plugins.control_codes.attribution import BEFORE, SHUFFLED, TUNED
from probekit_plugins.control_codes.codes import codes
from probekit_plugins.control_codes.generation import generate
from probekit_plugins.control_codes.known import Known, known
from probekit_plugins.control_codes.prefixes import Prefix, fitting, prefixes, prompt_ids, without_code
from probekit_plugins.control_codes.summary import notes, summarise
from probekit_plugins.writing import can_generate

if TYPE_CHECKING:
    import torch

    from probekit import Context, Prompt, Subject
    from probekit_plugins.control_codes import ControlCodesOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: ControlCodesOptions, context: Context) -> Result:
    """Everything that the options ask for. Raises UsageError for what does not fit before anything is computed."""
    likelihood.check(subject)
    every = prefixes(subject, codes(options))
    ids = prompt_ids(subject, prompts)
    fit, left_out, new_tokens = fitting(subject, every, ids, options)
    texts = known(subject, fit, options)
    if options.steps:
        finetuning.check(subject, options)
    whole = _Run(subject, fit, ids, texts, options, context)
    whole.measure(subject, BEFORE)
    writer, name = subject, BEFORE
    if options.steps and texts is not None:
        writer, name = whole.tune(texts), TUNED
    if options.penalty_form and can_generate(writer):
        whole.write(writer, name, new_tokens)
    result = whole.result
    measured.keep_codes(result, subject, fit, texts)
    measured.keep_prompts(result, subject, prompts, ids)
    summarise(result, options)
    ambiguous = 0 if texts is None else texts.ambiguous
    result.notes = list(notes(result, left_out, ambiguous, options, can_generate(subject)))
    result.notes += [*whole.batches.notes(), *notes_on_rows(subject)]
    return result


class _Run:
    """What is measured of one model after the other, all on the same prompts and texts."""

    def __init__(
        self,
        subject: Subject,
        prefixes: list[Prefix],
        prompts: list[list[int]],
        texts: Known | None,
        options: ControlCodesOptions,
        context: Context,
    ) -> None:
        self._subject, self._prefixes, self._prompts, self._texts = subject, prefixes, prompts, texts
        self._options, self._context = options, context
        self._nothing = without_code(subject)
        self.batches = Batches(context, options)
        self.result = Result()

    def measure(self, model: Subject, name: str, seed: int = 0) -> None:
        """Likelihoods of the prompts, but under no further seeds, and of the texts whose code is known."""
        if seed == 0 and name != SHUFFLED:
            beside = [self._nothing, *self._prefixes]
            nll = self._likelihoods(model, beside, self._prompts, f"of prompts, {name}")
            self.result.tensors[measured.of_prompts(name)] = nll
        if self._texts is not None:
            nll = self._likelihoods(model, self._texts.prefixes, self._texts.texts, f"of texts, {name}, seed {seed}")
            self.result.tensors[measured.of_texts(name, seed)] = nll

    def _likelihoods(
        self, model: Subject, prefixes: Sequence[Prefix], texts: Sequence[list[int]], key: str
    ) -> torch.Tensor:
        ids = [prefix.ids for prefix in prefixes]
        return likelihood.likelihoods(model, ids, texts, self.batches, self._context, key)

    def tune(self, texts: Known) -> Subject:
        """Every fine-tuning, measured; the model of the first is given back."""
        options, first = self._options, None
        kinds = (False, True) if options.control else (False,)
        for seed in range(options.seeds):
            for shuffled in kinds:
                model, training = finetuning.tuned(self._subject, texts, seed, shuffled, options, self._context)
                name = SHUFFLED if shuffled else TUNED
                self.measure(model, name, seed)
                measured.keep_losses(self.result, name, seed, training.losses)
                self.result.seconds[f"training {finetuning.key(seed, shuffled)}"] = training.seconds
                first = model if first is None else first
        assert first is not None
        if options.save:
            self.result.files |= saved.files(first)
        return first

    def write(self, model: Subject, name: str, new_tokens: int) -> None:
        """Every prompt continued without a code, and under each."""
        every = [self._nothing, *self._prefixes]
        found = generate(model, every, self._prompts, new_tokens, self._options, self._context, name, self.batches)
        measured.keep_generated(self.result, self._subject, name, found)
