"""Optimisers over a batch of independent rows, with a state that can be saved and restored bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from probekit_plugins.gradient_inverter import GradientInverterOptions

Rows = Callable[[torch.Tensor], torch.Tensor]
"""A loss for each row: `[B, …]` → `[B]`."""

Step = Callable[[], torch.Tensor]
Repeated = Callable[[Step, Callable[[], Iterable[torch.Tensor]]], Step]
"""A step and the tensors that it changes → the step, captured where that gives the same."""


class Optimizer(Protocol):
    """Moves a batch of rows, each by its own loss alone."""

    def step(self, rate: float) -> torch.Tensor:
        """One step in place; returns each row's loss before it, `[B]`, without prior."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that the next steps depend on."""
        ...

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a saved state."""
        ...


def make(kind: str, x: torch.Tensor, loss: Rows, prior: Rows | None, repeated: Repeated | None = None) -> Optimizer:
    """The optimiser of that name for the rows `x`, moved in place; `prior` joins the gradient, not the loss.

    `repeated` is `Subject.repeated` where steps may be captured. L-BFGS, whose line search reads losses, never is.
    """
    return BatchedLBFGS(x, loss, prior) if kind == "lbfgs" else FirstOrder(kind, x, loss, prior, repeated)


def rate_at(step: int, rate: float, options: GradientInverterOptions) -> float:
    """η_n: constant, or falling from η at the first step to η/10 at the last, linearly or along a half cosine."""
    share = step / max(1, options.steps - 1)
    if options.schedule == "linear":
        return rate * (1 - 0.9 * share)
    if options.schedule == "cosine":
        return rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))
    return rate


class FirstOrder:
    """torch's Adam or gradient descent: both act on each entry by itself, so rows stay independent.

    A step is one function of tensors that stay where they are, so that `repeated` may capture it: then the rate is a
    tensor too, as Adam's count of steps is.
    """

    def __init__(self, kind: str, x: torch.Tensor, loss: Rows, prior: Rows | None, repeated: Repeated | None) -> None:
        self._x = x.requires_grad_(True)
        self._loss, self._prior = loss, prior
        self._captured = repeated is not None
        self._rate = x.new_zeros(())
        self._optimizer: torch.optim.Optimizer
        if kind == "adam":
            rate = self._rate if self._captured else 1e-3
            self._optimizer = torch.optim.Adam([x], rate, capturable=self._captured)
        else:
            self._optimizer = torch.optim.SGD([x])
        self._descends = kind == "descent"
        self._take = repeated(self._moved, self._state) if repeated else self._moved

    def step(self, rate: float) -> torch.Tensor:
        if self._captured:
            self._rate.fill_(rate)
        else:
            self._optimizer.param_groups[0]["lr"] = rate
        return self._take()

    def _moved(self) -> torch.Tensor:
        loss = self._loss(self._x)
        total = loss.sum() if self._prior is None else loss.sum() + self._prior(self._x).sum()
        (gradient,) = torch.autograd.grad(total, self._x)
        if self._captured and self._descends:  # torch's reads a rate that is a tensor
            with torch.no_grad():
                self._x.addcmul_(gradient, self._rate, value=-1)
        else:
            self._x.grad = gradient
            self._optimizer.step()
        return loss.detach()

    def _state(self) -> list[torch.Tensor]:
        """What a step changes."""
        return [self._x, *self.state().values()]

    def state(self) -> dict[str, torch.Tensor]:
        kept = self._optimizer.state.get(self._x, {})
        return {f"optimizer.{name}": value for name, value in kept.items() if isinstance(value, torch.Tensor)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            if name.startswith("optimizer."):
                counts = value.dim() == 0 and not self._captured
                on = torch.device("cpu") if counts else self._x.device
                self._optimizer.state[self._x][name.removeprefix("optimizer.")] = value.to(on)


class BatchedLBFGS:
    """Limited-memory BFGS with its own history, direction and backtracking line search for each row.

    torch's L-BFGS sees one problem in the whole batch: one row's curvature would bend another's step. Two-loop
    recursion over the last `MEMORY` pairs (Nocedal & Wright, algorithm 7.4); the step is halved until the loss falls by
    10⁻⁴ of what its slope promises (Armijo), at most `HALVINGS` times, else the row stays and its history is dropped.
    """

    MEMORY = 10
    HALVINGS = 12

    def __init__(self, x: torch.Tensor, loss: Rows, prior: Rows | None) -> None:
        self._x, self._loss, self._prior = x.requires_grad_(True), loss, prior
        rows, entries = x.shape[0], x[0].numel()
        self._moves = x.new_zeros(self.MEMORY, rows, entries)
        self._turns = x.new_zeros(self.MEMORY, rows, entries)
        self._curvature = x.new_zeros(self.MEMORY, rows)  # s·y, 0 where there is no pair
        self._last_x = x.new_zeros(0)
        self._last_gradient = x.new_zeros(0)

    def step(self, rate: float) -> torch.Tensor:
        loss = self._loss(self._x)
        total = self._total(loss, self._x)
        (gradient,) = torch.autograd.grad(total.sum(), self._x)
        g, x = gradient.flatten(1), self._x.detach().flatten(1).clone()
        if self._last_x.numel():
            self._remember(x - self._last_x, g - self._last_gradient)
        direction = self._direction(g)
        slope = (direction * g).sum(1)
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -g, direction)
        slope = torch.where(uphill, -g.square().sum(1), slope)
        first = (self._curvature == 0).all(0)  # without curvature, a step of the size of the rate
        length = torch.where(first, rate / g.abs().sum(1).clamp_min(1e-12), torch.full_like(slope, rate))
        accepted = torch.zeros_like(first)
        with torch.no_grad():
            for _ in range(self.HALVINGS):
                trial = x + length[:, None] * direction
                value = self._total(self._loss(trial.view_as(self._x)), trial.view_as(self._x))
                good = value <= total.detach() + 1e-4 * length * slope
                accepted |= good
                if bool(accepted.all()):
                    break
                length = torch.where(accepted, length, length / 2)
            moved = torch.where(accepted[:, None], x + length[:, None] * direction, x)
            self._x.copy_(moved.view_as(self._x))
            self._curvature[:, ~accepted] = 0
        self._last_x, self._last_gradient = x, g.detach()
        return loss.detach()

    def _total(self, loss: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return loss if self._prior is None else loss + self._prior(x)

    def _remember(self, move: torch.Tensor, turn: torch.Tensor) -> None:
        curvature = (move * turn).sum(1)
        useful = curvature > 1e-10 * turn.square().sum(1)
        for history, value in ((self._moves, move), (self._turns, turn)):
            history[:-1, useful] = history[1:, useful].clone()
            history[-1, useful] = value[useful]
        self._curvature[:-1, useful] = self._curvature[1:, useful].clone()
        self._curvature[-1, useful] = curvature[useful]

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        q = gradient.clone()
        inverse = torch.where(self._curvature > 0, 1 / self._curvature.clamp_min(1e-38), 0)
        weights = []
        for s, y, rho in zip(self._moves.flip(0), self._turns.flip(0), inverse.flip(0), strict=True):
            weight = rho * (s * q).sum(1)
            q = q - weight[:, None] * y
            weights.append(weight)
        squares = self._turns[-1].square().sum(1)
        scale = torch.where(squares > 0, self._curvature[-1] / squares.clamp_min(1e-38), 1.0)
        q = q * torch.where(scale > 0, scale, 1.0)[:, None]
        for s, y, rho, weight in zip(self._moves, self._turns, inverse, reversed(weights), strict=True):
            q = q + s * (weight - rho * (y * q).sum(1))[:, None]
        return -q

    def state(self) -> dict[str, torch.Tensor]:
        return {
            "optimizer.moves": self._moves,
            "optimizer.turns": self._turns,
            "optimizer.curvature": self._curvature,
            "optimizer.last_x": self._last_x,
            "optimizer.last_gradient": self._last_gradient,
        }

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            if name.startswith("optimizer."):
                setattr(self, "_" + name.removeprefix("optimizer."), value.to(self._x.device))
