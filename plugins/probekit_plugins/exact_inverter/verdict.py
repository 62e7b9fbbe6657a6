"""What is known of a token in the end, and what that follows from. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What is known of a token in the end."""

    VERIFIED = "verified"
    """It reproduces the activation, and no rival does."""
    TIED = "tied"
    """It reproduces the activation, and so does another token."""
    MATCHING = "matching"
    """It reproduces the activation, but rests on tokens that are not certain, or others may as well."""
    NEAREST = "nearest"
    """It does not reproduce the activation, but is the nearest that was tried."""
    UNDETERMINED = "undetermined"
    """Nothing is known of it: a guess."""


@dataclass
class Verdict:
    """What is known of one token. Distances are relative to the norm of the activation that decides: at the token's own
    position, or where that is unknown, at the next known one.
    """

    status: Status = Status.UNDETERMINED
    distance: float | None = None  # ‖O(x)_t − a_t‖ / ‖a_t‖
    bound: float | None = None  # ε_t / ‖a_t‖
    rival: int | None = None  # the token that comes nearest after it
    rival_distance: float | None = None
    ties: int = 0  # rivals that match as well
    alone: bool = False  # no other token than it and the ties fits there, whichever of the tied ones before is right


def settle(verdicts: Sequence[Verdict], noisy: bool) -> None:
    """Give each verdict of a prompt its status. A token is only as certain as those before it; what comes after a tie
    is certain where the tied tokens were followed further, which they are without noise.
    """
    certain = True
    for verdict in verdicts:
        if verdict.distance is None or verdict.bound is None:
            verdict.status = Status.UNDETERMINED
        elif verdict.distance > verdict.bound:
            verdict.status = Status.NEAREST
        elif verdict.ties:
            verdict.status = Status.TIED
        elif certain and verdict.alone:
            verdict.status = Status.VERIFIED
        else:
            verdict.status = Status.MATCHING
        certain &= verdict.status == Status.VERIFIED or (verdict.status == Status.TIED and not noisy)


def noise_survived(verdict: Verdict, width: int) -> float | None:
    """σ of noise, relative to the activation's root mean square, at which the nearest rival would be taken for the
    token in one case of a thousand: `Δ / (2 · 3.09)` for a rival whose activation is Δ away from the token's own.
    The given one may hold noise already, about perpendicular to that: `Δ² = ‖a_rival − a‖² − ‖O(x) − a‖²`. `width` is
    that of the activations.
    """
    if verdict.rival_distance is None or verdict.distance is None:
        return None
    apart = math.sqrt(max(0.0, verdict.rival_distance**2 - verdict.distance**2))
    return apart * math.sqrt(width) / (2 * 3.09)
