"""What both arms are trained on and measured by: pieces of a text, its last tenth held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.batches import Batches
from probekit_plugins.texts import begun, piece_length, pieces_of_file, spread_over
from probekit_plugins.writing import written_pieces

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.frozen_head import FrozenHeadOptions

USUAL_LENGTH = 64
# So that its last tenth is a piece at least.
FEWEST = 10
# The held-out loss is computed a dozen times in each training, over at most so many pieces, evenly spread.
MOST_HELD_OUT = 32
# The model writes so many pieces in one batch.
WRITTEN_AT_ONCE = 32


@dataclass(frozen=True)
class Corpus:
    """Token ids `[pieces, T]`, each begun as the tokenizer begins a text, where the model is."""

    training: torch.Tensor
    held_out: torch.Tensor


def length(subject: Subject, options: FrozenHeadOptions) -> int:
    """Tokens of a piece. Raises UsageError if that is more than the model's context holds."""
    return piece_length(subject, options.length, USUAL_LENGTH, "length")


def corpus(
    subject: Subject, prompt: Prompt, options: FrozenHeadOptions, context: Context, batches: Batches | None = None
) -> Corpus:
    """The pieces of the file, or those that the model writes after what begins a text, or the prompt's first token.

    Raises UsageError with one sentence if the file cannot be read or is too short.
    """
    tokens = length(subject, options)
    if options.text is not None:
        pieces = pieces_of_file(subject, options.text, tokens, "length")
        if len(pieces) < FEWEST:
            raise UsageError(
                f"The text '{options.text}' has {len(pieces)} pieces of {tokens} tokens, and its last tenth is held "
                f"out, so it takes {FEWEST}; give a longer text or cut shorter pieces (-o length=…)."
            )
    else:
        label = "text to train on"
        pieces = written_pieces(
            subject, prompt, options.pieces, tokens, WRITTEN_AT_ONCE, context, label, batches or Batches(context)
        )
    held_out = len(pieces) // 10
    return Corpus(begun(subject, pieces[:-held_out]), begun(subject, spread_over(pieces[-held_out:], MOST_HELD_OUT)))
