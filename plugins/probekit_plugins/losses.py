"""What becomes of the losses of a training's steps: a curve as a chart shows it, and the loss at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Points of a loss curve that a result keeps.
POINTS = 200


def curve(losses: torch.Tensor | ArrayLike) -> list[tuple[int, float]]:
    """The loss over the steps, of `[steps]`: the mean of as many stretches as a chart shows, each at its last step."""
    every = torch.as_tensor(losses).double()
    size = -(-len(every) // POINTS)
    return [(min((index + 1) * size, len(every)), float(part.mean())) for index, part in enumerate(every.split(size))]


def at_end(losses: torch.Tensor | ArrayLike) -> float:
    """The mean over the last twentieth of the steps, of `[steps]`."""
    every = torch.as_tensor(losses).double()
    return float(every[-max(1, len(every) // 20) :].mean())
