"""The steps of the clamped walk: a shift of one side of the embedding, and a descent on the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from probekit import Result
from probekit_plugins.walks.journey import Track
from probekit_plugins.walks.scoring import walk
from probekit_plugins.walks.walkers import Walkers, norms

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.clamped_walk import ClampedWalkOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: ClampedWalkOptions, context: Context) -> Result:
    """One walk for each number of inner steps, all with the same shifts, and the shifts alone: what was measured."""
    measured = {} if options.noise else {"embedding_std": subject.embedding_matrix.std().double()}
    noise = options.noise_of(measured)

    def track(inner: int, name: str) -> Track:
        return Track(name, lambda walkers: Clamped(walkers, options, noise, inner))

    def tracks(_: Walkers) -> list[Track]:
        found = [track(inner, f"inner {inner}") for inner in dict.fromkeys(options.inner)]
        return [*found, track(0, "shifts alone")] if options.control else found

    result = walk(subject, prompts, options, context, tracks)
    result.tensors |= measured
    return result


class Clamped:
    """`u`: noise on `[i:]`, then `inner` steps of `−ε ∇‖O_l(e) − t‖₁` on `[:i]`; i is the same for all positions."""

    def __init__(self, walkers: Walkers, options: ClampedWalkOptions, noise: float, inner: int) -> None:
        self._walkers, self._options, self._inner = walkers, options, inner
        self._sigma = noise if options.noise_scale == "code" else noise**2
        given = options.learning_rate
        start = walkers.embeddings
        # NaN until it is chosen.
        self._rate = start.new_full((len(walkers),), math.nan if given is None else given)
        entries = torch.tensor(walkers.lengths, device=start.device) * start.shape[-1]
        self._noise_length = self._sigma * entries.double().sqrt()  # expected, of noise on every column
        # A descent works on these in place, so that it may be captured.
        self._moved = torch.empty_like(start)
        self._clamped = torch.empty(len(start), 1, start.shape[-1], dtype=torch.bool, device=start.device)
        self._descend = walkers.subject.repeated(self._descended, lambda: [self._moved, self._rate])

    def __call__(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        noise, clamped = self._shift(step)
        self._clamped.copy_(clamped)
        torch.add(embeddings, noise, out=self._moved)
        for _ in range(self._inner):
            self._descend()
        return self._moved - embeddings

    def _descended(self) -> torch.Tensor:
        """One step on the columns that are not clamped, in place; the losses before it, `[B]`."""
        leaf = self._moved.detach().requires_grad_()
        with torch.enable_grad():
            loss = self._walkers.loss(leaf)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if self._options.learning_rate is None:
            self._choose_rates(gradient)
        self._moved -= self._rate.nan_to_num(0)[:, None, None] * gradient.masked_fill(self._clamped, 0)
        return loss.detach()

    def _shift(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise `[B, T, d]`, and which columns it fills, `[B, 1, d]`."""
        width = self._walkers.embeddings.shape[-1]
        generators = list(self._walkers.generators(f"shift {step}"))
        index = torch.tensor([int(torch.randint(width, (), generator=generator)) for generator in generators])
        above = torch.arange(width)[None] >= index[:, None]
        clamped = above if self._options.shifted == "above" else ~above
        clamped = clamped[:, None].to(self._walkers.embeddings.device)
        return self._sigma * self._walkers.noise(iter(generators)) * clamped, clamped

    def _choose_rates(self, gradient: torch.Tensor) -> None:
        """For each walker, at its first gradient: the ε for which a step along all of it is `relative_rate` times as
        long as noise on every column.
        """
        length = norms(gradient, 2)
        chosen = (self._options.relative_rate * self._noise_length / length).to(self._rate)
        self._rate.copy_(torch.where(self._rate.isnan() & (length > 0), chosen, self._rate))

    def state(self) -> dict[str, torch.Tensor]:
        return {"rate": self._rate}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._rate.copy_(state["rate"])
