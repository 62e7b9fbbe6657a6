"""Steps of the walks: the direction of an orthogonal walk against the source page's, and what a step costs in all.

A step of a walk is a step of the layer map (forward, scalar, backward to the embeddings) and its direction; what it
costs beyond the two is the walk's own overhead. GPT-2 124 M, 5 tokens, one walker.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import probekit
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Figure, Outcome, Settings
from probekit_plugins.clamped_walk import ClampedWalkOptions
from probekit_plugins.clamped_walk.strides import Clamped
from probekit_plugins.jacobian import Jacobian
from probekit_plugins.orthogonal_walk import OrthogonalWalkOptions
from probekit_plugins.orthogonal_walk.strides import Orthogonal, project_off
from probekit_plugins.walks.journey import Stride, orthogonality
from probekit_plugins.walks.walkers import Walkers

# Width, rounds.
WIDTHS = ((768, 200), (1600, 100))
# Blocks, rounds.
DEPTHS = ((1, 500), (12, 100))
DIRECTION_GOAL, STEP_GOAL = 20.0, 1.1


class Walk:
    """`e ← e + u`, as a walk's loop does it; `step()` does it once."""

    def __init__(self, stride: Stride, start: torch.Tensor) -> None:
        self._stride, self._embeddings, self._number = stride, start.clone(), 0

    def step(self) -> None:
        self._embeddings = self._embeddings + self._stride(self._embeddings, self._number)
        self._number += 1


def layer_map_step(loss: Callable[[torch.Tensor], torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
    """The floor: forward, scalar, backward to the embeddings."""
    leaf = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return gradient


def by_svd(gradient: torch.Tensor) -> torch.Tensor:
    """The page's direction: the last row of the full Vᴴ, `[1, T, d]` → `[1, 1, d]`."""
    rows: torch.Tensor = torch.linalg.svd(gradient[0]).Vh
    return rows[None, -1:]


def directions(settings: Settings, outcome: Outcome) -> None:
    """The direction alone, from the gradient."""
    for width, rounds in WIDTHS[:1] if settings.quick else WIDTHS:
        generator = torch.Generator().manual_seed(width)
        gradient = torch.randn(1, TOKENS, width, generator=generator)
        vector = torch.randn(1, 1, width, generator=generator)
        ours = partial(project_off, vector, gradient)
        page = partial(by_svd, gradient)
        sides = [Side("probekit", "probekit", ours), Side("full SVD, as on the page", "peer", page)]
        timings = alternate(sides, settings.rounds(rounds), warmup=2)
        outcome.time(f"direction, d = {width}", sides, timings)
        outcome.figure(
            f"direction, d = {width}: full SVD / probekit",
            timings.ratio("full SVD, as on the page", "probekit"),
            DIRECTION_GOAL,
            better="higher",
        )
        for name, direction in (("probekit", ours()), ("full SVD", page())):
            relative, _ = orthogonality(gradient, direction.expand_as(gradient))
            outcome.figures.append(
                Figure(f"direction, d = {width}: |g·v| / ‖g‖‖v‖ of {name}, × 1e-8", float(relative) * 1e8, unit="")
            )


def steps(settings: Settings, outcome: Outcome) -> None:
    """Whole steps at one block and at all of them."""
    subject = gpt2()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
    prompt = probekit.Prompt("", ids, subject.tokens(ids))
    for blocks, rounds in DEPTHS:
        label = "one block" if blocks == 1 else f"{blocks} blocks"
        walkers = Walkers(subject, [prompt], f"block.{blocks - 1}", 1, probekit.Context())
        start = walkers.embeddings
        orthogonal = Orthogonal(walkers, OrthogonalWalkOptions())
        clamped = Clamped(walkers, ClampedWalkOptions(learning_rate=1e-6), 1e-4, inner=1)
        shift = Clamped(walkers, ClampedWalkOptions(), 1e-4, inner=0)
        gradient = walkers.summed_gradient(start)
        vector = torch.randn(1, 1, subject.width, generator=generator)
        jacobian = Jacobian(walkers.layer_map, start, walkers.mask)
        sides = [
            Side("layer map, summed", "floor", partial(layer_map_step, walkers.layer_map, start)),
            Side("layer map, L1", "floor", partial(layer_map_step, walkers.loss, start)),
            Side("direction", "probekit", partial(project_off, vector, gradient)),
            Side("shift", "probekit", partial(shift, start, 0)),
            Side("orthogonal walk", "probekit", Walk(orthogonal, start).step),
            Side("clamped walk, 1 inner step", "probekit", Walk(clamped, start).step),
            Side("J v", "probekit", partial(jacobian.times, start)),
            Side("Jᵀ u", "probekit", partial(jacobian.transposed_times, start)),
        ]
        timings = alternate(sides, settings.rounds(rounds), warmup=settings.rounds(10))
        outcome.time(label, sides, timings)
        outcome.figure(
            f"{label}: orthogonal walk / (layer map + direction)",
            timings.ratio("orthogonal walk", "layer map, summed", "direction"),
            STEP_GOAL,
        )
        outcome.figure(
            f"{label}: clamped walk, 1 inner step / (layer map + shift)",
            timings.ratio("clamped walk, 1 inner step", "layer map, L1", "shift"),
            STEP_GOAL,
        )
        for product in ("J v", "Jᵀ u"):
            outcome.figure(f"{label}: {product} / layer map", timings.ratio(product, "layer map, summed"))


def run(settings: Settings) -> Outcome:
    """Time the directions, then the steps."""
    outcome = Outcome("Steps of the walks")
    directions(settings, outcome)
    steps(settings, outcome)
    return outcome
