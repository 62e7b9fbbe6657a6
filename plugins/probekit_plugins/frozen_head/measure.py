"""The analysis in its order: the text, and every initialisation in both arms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from probekit import Result, UsageError
from probekit_plugins.batches import Batches
from probekit_plugins.frozen_head.arm import Arm, State
from probekit_plugins.frozen_head.corpus import Corpus, corpus, length
from probekit_plugins.frozen_head.fresh import check
from probekit_plugins.frozen_head.schedule import ARMS
from probekit_plugins.writing import can_generate

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.frozen_head import FrozenHeadOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: FrozenHeadOptions, context: Context) -> Result:
    """Train every initialisation in both arms, and keep what was measured. Raises UsageError with one sentence before
    anything long is begun.
    """
    check(subject)
    length(subject, options)
    if options.text is None and not can_generate(subject):
        raise UsageError("This model writes no text to train on; give one (-o text=FILE).")
    batches = Batches(context, options)
    pieces = corpus(subject, prompts[0], options, context, batches)

    def train(number: int, arm: str) -> State:
        return Arm(subject, pieces, arm, number, options, context, batches).train()

    found = {
        (number, arm): context.stage(f"trained {number}/{arm}", partial(train, number, arm))
        for number in range(options.initialisations)
        for arm in ARMS
    }
    result = Result(notes=_notes(subject, pieces, options) + batches.notes())
    for (number, arm), tensors in found.items():
        result.tensors |= {f"{number}/{arm}/{name}": tensor for name, tensor in tensors.items()}
    result.tensors |= {
        "training_pieces": torch.tensor(len(pieces.training)),
        "held_out_pieces": torch.tensor(len(pieces.held_out)),
    }
    return result


def _notes(subject: Subject, pieces: Corpus, options: FrozenHeadOptions) -> list[str]:
    notes = [
        f"A short training: {options.steps} steps, in which each of the {len(pieces.training)} training pieces is seen "
        f"{options.steps * options.batch / len(pieces.training):.1f} times on average. What holds at its end need not "
        "hold at the end of a training of full length.",
        "Both arms have the same learning rate, which was tuned for neither.",
    ]
    if options.text is None:
        notes.append(
            "No text was given, so the fresh models were trained on text that the subject wrote itself at temperature "
            "1, without the token that ends a text: they learn its distribution, not that of language (-o text=FILE)."
        )
    if getattr(subject.model.config, "tie_word_embeddings", False):
        notes.append(
            "This architecture shares the head's weights with the embedding. Here both arms have a head of its own: "
            "freezing a shared one would freeze the embedding too."
        )
    if str(next(subject.model.parameters()).dtype) not in ("torch.float32", "torch.float64"):
        notes.append("The fresh models were trained in fp32.")
    return notes
