"""Copies of the model fine-tuned under codes: `L(D) = −Σ_k Σ_i log p(x_i^k | x_{<i}^k, c^k)`, per token of a batch.

Only a text's own tokens count, not its code's. The control is the same training with the codes shuffled among the
texts: whenever a text is seen, it is behind the code of a text drawn from all. A code then says nothing of the text
behind it, and attribution must be at chance. (Shuffled within a batch, codes would still say of which texts it has
more.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from probekit import UsageError
from probekit_plugins import copies
from probekit_plugins.control_codes.likelihood import own_log_likelihoods
from probekit_plugins.corpus import Texts
from probekit_plugins.order import Order
from probekit_plugins.trainer import Step, Training, train

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.control_codes import ControlCodesOptions
    from probekit_plugins.control_codes.known import Known


def check(subject: Subject, options: ControlCodesOptions) -> None:
    """Raise UsageError with one sentence if no copy of the model can be trained, or kept."""
    copies.check(subject, "Fine-tuning under control codes")
    if not subject.takes_padding(["logits"]):
        raise UsageError(
            f"Fine-tuning pads texts of unequal length, which changes what {type(subject.model).__name__} computes; "
            "leave out -o steps."
        )
    if options.save and not hasattr(subject.model, "save_pretrained"):
        raise UsageError(
            f"{type(subject.model).__name__} is no model of transformers, so it is not saved; leave out -o save."
        )


class Tuning(copies.WithoutDropout):
    """A model that is trained on texts behind prefixes."""

    def __init__(self, model: nn.Module, prefixes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.model, self._prefixes = model, prefixes

    def loss(self, codes: Sequence[int], texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The mean of `−log p(x_i | x_{<i}, c)` over all tokens of these texts, each behind its code."""
        rows = Texts.of([[*self._prefixes[code], *text] for code, text in zip(codes, texts, strict=True)])
        device = next(self.model.parameters()).device
        mask = {} if bool(rows.mask.all()) else {"attention_mask": rows.mask.to(device)}
        logits = self.model(input_ids=rows.ids.to(device), use_cache=False, **mask).logits
        first = torch.tensor([len(self._prefixes[code]) for code in codes])
        sums = own_log_likelihoods(logits, rows.ids, first, rows.lengths)
        return -sums.sum() / sum(map(len, texts))


def tuned(
    subject: Subject, known: Known, seed: int, shuffled: bool, options: ControlCodesOptions, context: Context
) -> tuple[Subject, Training]:
    """A copy of the model after all steps. Texts come in the seed's order, which the control shares."""
    copy = copies.copied(subject)
    module = Tuning(copy.model, [prefix.ids for prefix in known.prefixes])
    drawn = int(torch.randint(2**62, (1,), generator=context.generator(f"order/{seed}")))
    order, examples = Order(len(known.training), drawn), known.training
    size = min(options.batch, len(examples))

    def loss(rows: torch.Tensor, step: Step) -> torch.Tensor:
        batch = [examples[row] for row in rows.tolist()]
        codes = [code for code, _ in batch]
        if shuffled:
            others = torch.randint(len(examples), (len(codes),), generator=step.generator).tolist()
            codes = [examples[other][0] for other in others]
        return module.loss(codes, [ids for _, ids in batch])

    training = train(module, loss, lambda number: order.batch(number, size), options, context, key(seed, shuffled))
    copy.model.requires_grad_(False)
    return copy, training


def key(seed: int, shuffled: bool) -> str:
    """What a training is called."""
    return f"{'shuffled codes' if shuffled else 'own codes'}, seed {seed}"
