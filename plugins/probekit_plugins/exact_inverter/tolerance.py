"""How far a model is from itself: the same tokens in batches of other shapes give slightly other activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.batches import Batches

# An activation matches at so many times the greatest difference that was measured.
SAFETY = 2.0
# Positions that are measured of each kind of prompt, at least two prompts of them.
POSITIONS = 384
# The least difference, where the model computes in fp32 or wider: sums in another order.
LEAST = 8 * 2.0**-23
# By so many units of the precision tokens that come later change an activation by rounding alone (in a mixture of
# experts they do), and by so much in int8, where they share outlier columns. In fp32, more is a sign of a model that
# does not read from left to right.
CAUSAL_UNITS, CAUSAL_INT8, CAUSAL_LEAST = 8, 0.25, 1e-3


def arithmetic_error(subject: Subject, site: str, prompts: Sequence[torch.Tensor], batches: Batches) -> float:
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

        def of(chosen: slice, ids: torch.Tensor = ids) -> torch.Tensor:
            return at_least_single(subject.capture(ids[chosen], [site])[site])

        together = batches.joined(len(ids), of, f"{site}/error")
        for row, beside in zip(ids, together, strict=True):
            captured = subject.capture(row[None], [site])[site][0]
            precision = max(precision, torch.finfo(captured.dtype).eps)
            alone = at_least_single(captured)
            subject.check_finite(alone, f"The activation at {site}")
            check_causal(subject, site, row, captured)
            greatest = max(greatest, _apart(beside, alone))
            if taken is None:
                greatest = max(
                    greatest, *(_after_prefix(subject, site, ids, row, alone, cut, batches) for cut in _cuts(row))
                )
    return SAFETY * max(greatest, precision)


def check_causal(subject: Subject, site: str, row: torch.Tensor, captured: torch.Tensor) -> None:
    """Raise AnalysisError if another last token changes the activations before it, `[T, w]`."""
    if len(row) < 2:
        return
    other = row.clone()
    other[-1] = row[0] if row[-1] != row[0] else (row[0] + 1) % subject.vocabulary
    changed = at_least_single(subject.capture(other[None], [site])[site][0])[:-1]
    different = _apart(changed, at_least_single(captured)[:-1])
    rounding = CAUSAL_UNITS * torch.finfo(captured.dtype).eps
    int8 = bool(getattr(subject.model, "is_loaded_in_8bit", False))
    if different > max(CAUSAL_LEAST, rounding, CAUSAL_INT8 if int8 else 0.0):
        raise AnalysisError(
            f"The activation at {site} depends on tokens that come later (by {different:.2g} of its norm), so that it "
            "cannot be inverted from left to right; choose the site of a block of a causal model."
        )


def _cuts(row: torch.Tensor) -> list[int]:
    """Lengths of prefixes that leave at least one token."""
    return sorted({len(row) // 4, len(row) // 2, len(row) - 1})


def _after_prefix(
    subject: Subject, site: str, ids: torch.Tensor, row: torch.Tensor, alone: torch.Tensor, cut: int, batches: Batches
) -> float:
    """How far a prefix alone, and its next token among those of other prompts, are from what they are in the prompt."""
    different = 0.0
    if cut:
        short = at_least_single(subject.capture(row[None, :cut], [site])[site][0])
        different = _apart(short, alone[:cut])
    among = torch.cat([row[cut : cut + 1], ids[:, cut]])[:, None]
    continuation = subject.continuation(row[:cut], site)
    following = batches.joined(len(among), lambda chosen: continuation(among[chosen]), f"{site}/error among others")
    return max(different, _apart(at_least_single(following[0]), alone[cut : cut + 1]))


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The greatest relative difference over positions."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-30)).max())
