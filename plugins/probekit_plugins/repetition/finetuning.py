"""Unlikelihood fine-tuning of a copy of the model, beside the same steps without unlikelihood.

`L = −log p(x_t | x_{<t}) + α · −Σ_{c ∈ C_t} log(1 − p(c | x_{<t}))`, the mean over tokens (Welleck et al., 1908.04319,
equations 3 to 5). Only what α changes is an effect of unlikelihood: any training on the same text changes repetition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from probekit import AnalysisError, UsageError
from probekit_plugins import copies
from probekit_plugins.batches import Batches
from probekit_plugins.repetition.predictions import unlikelihood
from probekit_plugins.repetition.texts import piece_length, pieces_of_file
from probekit_plugins.texts import begun
from probekit_plugins.training import backward, is_quantised, restore, state_of
from probekit_plugins.writing import can_generate, written_pieces

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.repetition import RepetitionOptions

# Every so-manieth piece is held out from training; at most so many of them are measured.
HELD_OUT = 5
MOST_HELD_OUT = 32
LARGEST_GRADIENT = 1.0


def check(subject: Subject, options: RepetitionOptions) -> None:
    """Raise UsageError with one sentence if a copy of this model cannot be trained here."""
    if is_quantised(subject):
        raise UsageError(
            "Unlikelihood fine-tuning changes weights, so it needs an unquantised model; leave out --quantization or "
            "-o unlikelihood_steps."
        )
    devices = {parameter.device for parameter in subject.model.parameters()}
    if len(devices) != 1 or any(device.type == "meta" for device in devices):
        raise UsageError("Unlikelihood fine-tuning needs the whole model on one device; load it without --device-map.")
    if not subject.has_logits:
        raise UsageError("Unlikelihood fine-tuning needs a model that predicts tokens; this one has no logits.")
    if options.text is None and not can_generate(subject):
        raise UsageError("This model writes no text to be tuned on; give one (-o text=FILE).")


class FineTuning:
    """Pieces of text, split into training and held-out ones, and copies of the model tuned on the former."""

    def __init__(
        self,
        subject: Subject,
        prompt: Prompt,
        options: RepetitionOptions,
        context: Context,
        batches: Batches | None = None,
    ) -> None:
        self._subject, self._options, self._context = subject, options, context
        self._memory = batches or Batches(context, options)
        pieces = pieces_of_file(subject, options) if options.text is not None else self._written(prompt)
        if len(pieces) < 2:
            raise UsageError(
                f"The text has only one piece of {pieces.shape[1]} tokens, and fine-tuning needs one to train on and "
                "one to hold out; give a longer text or cut shorter pieces (-o text_length=…)."
            )
        every = min(HELD_OUT, len(pieces))
        held_out = torch.arange(len(pieces)) % every == every - 1
        self._training = begun(subject, pieces[~held_out])
        self.held_out = begun(subject, pieces[held_out][:MOST_HELD_OUT])
        generator = context.generator("fine-tuning batches")
        shape = (options.unlikelihood_steps, options.unlikelihood_batch)
        self._batches = torch.randint(len(self._training), shape, generator=generator)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many pieces are trained on, and how many are held out."""
        return len(self._training), len(self.held_out)

    def _written(self, prompt: Prompt) -> torch.Tensor:
        """Pieces that the model writes itself at temperature 1, after what begins a text, or the first prompt's first
        token.
        """
        count, rows = self._options.unlikelihood_pieces, self._options.unlikelihood_batch
        length = piece_length(self._subject, self._options)
        label = "text to be tuned on"
        return written_pieces(self._subject, prompt, count, length, rows, self._context, label, self._memory)

    def tuned(self, alpha: float, stage: str) -> tuple[Subject, torch.Tensor]:
        """A copy of the model after all steps with this α, and the losses `[steps, 2]`: MLE and unlikelihood.

        Trained in fp32 at least, in eval mode: without dropout. Raises AnalysisError if a loss is not finite.
        """
        model = copies.model_of(self._subject)
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.AdamW(parameters.values(), self._options.unlikelihood_learning_rate)
        losses = torch.zeros(self._options.unlikelihood_steps, 2)
        state = state_of(parameters, optimizer, lambda: {"losses": losses})
        with self._context.loop(f"fine-tuning, {stage}", len(losses), f"fine-tuning/{stage}") as loop:
            if loop.start:
                losses.copy_(loop.state["losses"])
                restore(loop.state, parameters, optimizer)
            for step in range(loop.start, len(losses)):
                ids = self._training[self._batches[step]]

                def of(rows: slice, ids: torch.Tensor = ids) -> torch.Tensor:
                    """The gradients of some rows, added to those of the rows before, and their share of the losses."""
                    if rows.start == 0:  # also where it is tried again
                        optimizer.zero_grad(set_to_none=True)
                    share, part = (rows.stop - rows.start) / len(ids), ids[rows]
                    likelihood = model(input_ids=part, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                    mle = -likelihood.gather(-1, part[:, 1:, None]).mean() * share
                    repeated = unlikelihood(likelihood, part, 1).mean() * share
                    backward(mle + alpha * repeated, model)
                    return torch.stack([mle.detach(), repeated.detach()])[None]

                losses[step] = self._memory.joined(len(ids), of, f"fine-tuning/{stage}").sum(0).cpu()
                if not bool(torch.isfinite(losses[step]).all()):
                    raise AnalysisError(
                        f"The loss of the fine-tuning ({stage}) is not finite at step {step + 1}; lower the learning "
                        f"rate (-o unlikelihood_learning_rate={self._options.unlikelihood_learning_rate / 10:.2g})."
                    )
                nn.utils.clip_grad_norm_(parameters.values(), LARGEST_GRADIENT)
                optimizer.step()
                loop.end_step(state, mle=losses[step, 0], unlikelihood=losses[step, 1])
        optimizer.zero_grad(set_to_none=True)
        return copies.wrapped(model.requires_grad_(False), self._subject), losses
