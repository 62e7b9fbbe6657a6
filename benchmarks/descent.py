"""The work that is timed most: one step of a descent on embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch

LEARNING_RATE = 0.01


class Descent:
    """`e ← e − η ∇‖O(e) − t‖₁`, forward, backward and update; `step()` does it once."""

    def __init__(
        self,
        layer_map: Callable[[torch.Tensor], torch.Tensor],
        start: torch.Tensor,
        target: torch.Tensor,
    ) -> None:
        self._layer_map = layer_map
        self._target = target
        self.embeddings = start.clone().requires_grad_(True)
        self._optimizer = torch.optim.SGD([self.embeddings], lr=LEARNING_RATE)

    def step(self) -> None:
        loss = (self._layer_map(self.embeddings) - self._target).abs().sum()
        (self.embeddings.grad,) = torch.autograd.grad(loss, self.embeddings)
        self._optimizer.step()


def several(step: Callable[[], None], steps: int) -> Callable[[], None]:
    """The step, so many times in a row, as in a descent: the weights are then where its own last step left them."""

    def taken() -> None:
        for _ in range(steps):
            step()

    return taken
