"""How far a model is from itself: the same tokens in batches of other shapes give slightly other activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Subject

# An activation matches at so many times the greatest difference that was measured.
SAFETY = 2.0
# Positions that are measured of each kind of prompt, at least two prompts of them.
POSITIONS = 384
# The least difference, where the model computes in fp32 or wider: sums in another order.
LEAST = 8 * 2.0**-23
# Above this, tokens that come later change an activation: the model does not read from left to right.
CAUSAL = 0.25


def arithmetic_error(subject: Subject, site: str, prompts: Sequence[torch.Tensor]) -> float:
    """A bound of `‖O(x)_t − O'(x)_t‖ / ‖O(x)_t‖`, where O is a prompt alone and O' the same in another shape: in a
    batch of prompts, cut after some tokens, and as one candidate among others after a prefix.

    Raises AnalysisError if a token changes the activation at those before it: the model is not causal at this site.
    """
    taken = subject.anatomy.sequence
    if taken is not None and taken > 1:
        raise AnalysisError(
            f"This model reads exactly {taken} tokens at once, so that tokens cannot be tried one by one; give a "
            "causal model of any length."
        )
    greatest = 0.0
    precision = LEAST
    for batch in prompts:
        ids = batch[: max(2, POSITIONS // batch.shape[1])]
        together = at_least_single(subject.capture(ids, [site])[site])
        for row, beside in zip(ids, together, strict=True):
            captured = subject.capture(row[None], [site])[site][0]
            precision = max(precision, torch.finfo(captured.dtype).eps)
            alone = at_least_single(captured)
            greatest = max(greatest, _apart(beside, alone))
            if taken is None:
                greatest = max(greatest, *(_after_prefix(subject, site, ids, row, alone, cut) for cut in _cuts(row)))
    return SAFETY * max(greatest, precision)


def _cuts(row: torch.Tensor) -> list[int]:
    """Lengths of prefixes that leave at least one token."""
    return sorted({len(row) // 4, len(row) // 2, len(row) - 1})


def _after_prefix(
    subject: Subject, site: str, ids: torch.Tensor, row: torch.Tensor, alone: torch.Tensor, cut: int
) -> float:
    """How far a prefix alone, and its next token among those of other prompts, are from what they are in the prompt."""
    different = 0.0
    if cut:
        short = at_least_single(subject.capture(row[None, :cut], [site])[site][0])
        different = _apart(short, alone[:cut])
        if different > CAUSAL:
            raise AnalysisError(
                f"The activation at {site} depends on tokens that come later (by {different:.0%}), so that it cannot "
                "be inverted from left to right; choose the site of a block of a causal model."
            )
    among = torch.cat([row[cut : cut + 1], ids[:, cut]])[:, None]
    following = at_least_single(subject.continuation(row[:cut], site)(among)[0])
    return max(different, _apart(following, alone[cut : cut + 1]))


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The greatest relative difference over positions."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-30)).max())
