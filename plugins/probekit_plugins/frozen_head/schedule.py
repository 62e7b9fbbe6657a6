"""The arms of a training, the phases of its steps, the points of its held-out loss, and its layers. No torch."""

from __future__ import annotations

ARMS = ("trained", "frozen")
PHASES = ("early", "late")
# The held-out loss is computed before the first step, after the last, and in between, at so many points in all.
POINTS = 12


def points(steps: int) -> list[int]:
    """Numbers of steps after which the held-out loss is computed, evenly spread from 0 to all."""
    return sorted({round(index * steps / (POINTS - 1)) for index in range(POINTS)})


def phases(steps: int) -> list[tuple[int, int]]:
    """First step and end of the early and of the late phase: the first and the last quarter of the steps."""
    quarter = max(1, steps // 4)
    return [(0, quarter), (steps - quarter, steps)]


def names(blocks: int) -> list[str]:
    """The layers in order: 0 is the token embedding, 1 to L are the blocks, L + 1 is the head."""
    return ["embedding", *(f"block.{index}" for index in range(blocks)), "head"]
