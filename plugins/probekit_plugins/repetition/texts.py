"""Given text, as the options of this analysis say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit_plugins import texts

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.repetition import RepetitionOptions

LONGEST = 256


def piece_length(subject: Subject, options: RepetitionOptions) -> int:
    """Tokens of a piece, without what begins it. Raises UsageError if that is more than the model's context holds."""
    return texts.piece_length(subject, options.text_length, LONGEST, "text_length")


def pieces_of_file(subject: Subject, options: RepetitionOptions) -> torch.Tensor:
    """All pieces of the file, `[pieces, length]`. Raises UsageError if it cannot be read, or is shorter than one."""
    return texts.pieces_of_file(subject, options.text or "", piece_length(subject, options), "text_length")
