"""One trainer for everything that is trained here: AdamW, a schedule, a budget in steps and in seconds, a seed.

A training that is interrupted goes on where it was and ends with the same bits, and one that has ended is read back.
What is trained is a module with a `loss` of a batch; where batches come from is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import probekit
from probekit_plugins.training import backward, restore, state_of

if TYPE_CHECKING:
    from probekit import Context
    from probekit_plugins.training_options import TrainingOptions

State = dict[str, torch.Tensor]
# The loss is looked at for NaN so many times in a training: to look waits for the device.
LOOKS = 50


@dataclass(frozen=True)
class Step:
    """One step of a training: its number from 0, the share of the training before it, and its own random numbers."""

    number: int
    share: float
    generator: torch.Generator


@dataclass(frozen=True)
class Training:
    """What came of a training: the loss of each step `[steps]`, and the seconds that it took."""

    losses: torch.Tensor
    seconds: float

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return len(self.losses)


def learning_rate(options: TrainingOptions, share: float, first: float) -> float:
    """η at this share of the training; `first` is the share that one step is, so that no step is at 0."""
    if share < options.warmup:
        return options.learning_rate * min(1.0, (share + first) / options.warmup)
    left = (1 - share) / (1 - options.warmup)
    factors = {"linear": left, "cosine": (1 - cos(pi * left)) / 2, "constant": 1.0}
    return options.learning_rate * factors[options.schedule]


def train(
    module: nn.Module,
    loss: Callable[[Any, Step], torch.Tensor],
    batch: Callable[[int], Any],
    options: TrainingOptions,
    context: Context,
    key: str,
) -> Training:
    """Train a module's parameters, those that require gradients, on `loss(batch(n), step)` for n = 0, 1, ….

    `batch(n)` is the n-th batch whatever was asked for before, so that a resumed training sees the same. `key` names
    the training within the analysis. The module's parameters and buffers are those at the end, also where the training
    was done in an earlier process, and it is in eval mode. Raises AnalysisError if a loss is not finite, or has no
    gradients.

    While it is trained the module is in training mode: one that holds a copy of a subject is a `WithoutDropout`.
    """
    training = _Training(module, loss, batch, options, context, key)
    ended = context.stage(f"trained/{key}", training.run)
    with torch.no_grad():
        for name, tensor in _tensors(module).items():
            tensor.copy_(ended[f"module/{name}"])
    module.eval()
    return Training(ended["losses"], float(ended["seconds"]))


class _Training:
    """One training while it goes on."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, Step], torch.Tensor],
        batch: Callable[[int], Any],
        options: TrainingOptions,
        context: Context,
        key: str,
    ) -> None:
        self._module, self._loss, self._batch = module, loss, batch
        self._options, self._context, self._key = options, context, key
        self._parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        device = next(iter(self._parameters.values())).device
        self._losses = torch.zeros(options.steps, device=device)
        self._seconds = 0.0

    def run(self) -> State:
        """All steps, or as many as the seconds allow."""
        options = self._options
        optimizer = torch.optim.AdamW(
            self._parameters.values(), options.learning_rate, weight_decay=options.weight_decay
        )
        state = state_of(self._parameters, optimizer, self._state)
        seed = int(torch.randint(2**62, (1,), generator=self._context.generator(f"training/{self._key}")))
        look = max(1, options.steps // LOOKS)
        done = 0
        with (
            self._context.loop(f"training {self._key}", options.steps, f"training/{self._key}") as loop,
            _training(self._module),
        ):
            if loop.start:
                self._restore(loop.state)
                restore(loop.state, self._parameters, optimizer)
            before = time.perf_counter() - self._seconds
            for number in range(loop.start, options.steps):
                share = self._share(number)
                if share >= 1:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(options, share, 1 / options.steps)
                step = Step(number, share, torch.Generator().manual_seed(seed ^ number))
                value = self._loss(self._batch(number), step)
                optimizer.zero_grad(set_to_none=True)
                backward(value, self._module)
                nn.utils.clip_grad_norm_(self._parameters.values(), options.clip)
                optimizer.step()
                self._losses[number] = value.detach()
                self._seconds = time.perf_counter() - before
                done = number + 1
                if done % look == 0:
                    self._check(done)
                loop.end_step(state, loss=self._losses[number])
            done = max(done, loop.start)
        optimizer.zero_grad(set_to_none=True)
        self._check(done)
        ended = {f"module/{name}": tensor for name, tensor in _tensors(self._module).items()}
        return ended | {"losses": self._losses[:done], "seconds": torch.tensor(self._seconds, dtype=torch.float64)}

    def _share(self, number: int) -> float:
        spent = 0.0 if self._options.seconds is None else self._seconds / self._options.seconds
        return max(number / self._options.steps, spent)

    def _check(self, done: int) -> None:
        finite = self._losses[:done].isfinite()
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0]) + 1
            raise probekit.AnalysisError(
                f"The loss of the training {self._key} is not finite at step {first}; lower the learning rate "
                f"(-o learning_rate={self._options.learning_rate / 10:.2g})."
            )

    def _state(self) -> State:
        buffers = {f"buffer/{name}": tensor for name, tensor in self._module.named_buffers()}
        return buffers | {"losses": self._losses, "seconds": torch.tensor(self._seconds, dtype=torch.float64)}

    def _restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._seconds = float(state["seconds"])
        with torch.no_grad():
            for name, tensor in self._module.named_buffers():
                tensor.copy_(state[f"buffer/{name}"])


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """The module in training mode, gradients on; in eval mode afterwards."""
    module.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        module.eval()
