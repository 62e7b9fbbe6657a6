"""Directions orthogonal to a gradient, by QR or by the full singular value decomposition of the source page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from probekit import Result, UsageError
from probekit_plugins.orthogonal_walk.gradients import measure
from probekit_plugins.walks.journey import Memoryless, Track
from probekit_plugins.walks.scoring import walk
from probekit_plugins.walks.walkers import Walkers

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.orthogonal_walk import OrthogonalWalkOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: OrthogonalWalkOptions, context: Context) -> Result:
    """The walk and its control. Raises UsageError where no vector can be orthogonal to the gradient of a prompt."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    needed = 1 if options.broadcast or options.direction == "projected" else longest
    if longest + needed > subject.width:
        raise UsageError(
            f"A prompt of {longest} tokens leaves {max(0, subject.width - longest)} directions of the "
            f"{subject.width}-wide embedding orthogonal to its gradient, but this walk needs {needed}; shorten it."
        )

    def tracks(_: Walkers) -> list[Track]:
        found = [Track("orthogonal", lambda walkers: Orthogonal(walkers, options))]
        if options.control:
            found.append(Track("random", lambda walkers: Random(walkers, options)))
        return found

    result = walk(subject, prompts, options, context, tracks)
    if options.gradient_check:
        measure(result, subject, prompts, context)
    return result


class Random(Memoryless):
    """`u = η v` with v a random unit vector: one for all positions, or one for each; the same at every step, so that a
    walk of N steps gets N η away.
    """

    def __init__(self, walkers: Walkers, options: OrthogonalWalkOptions) -> None:
        self._walkers, self._options = walkers, options
        self._padding = None if bool(walkers.mask.all()) else walkers.mask
        drawn = walkers.noise(walkers.generators("direction"))
        self._drawn = torch.nn.functional.normalize(drawn[:, :1] if options.broadcast else drawn, dim=-1)

    def __call__(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        return self._options.step_size * self.direction(embeddings, step) * self._walkers.mask

    def direction(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        """Unit vectors, `[B, 1, d]` or `[B, T, d]`."""
        return self._drawn


class Orthogonal(Random):
    """`u = η v` with `g v = 0`, `g = ∇_e Σ O_l(e)`."""

    def direction(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        gradient = self._walkers.summed_gradient(embeddings)
        if self._options.direction == "projected":
            return project_off(self._drawn, gradient, self._padding)
        generators = self._walkers.generators(f"row {step}")
        rows = [
            null_rows(one[:length], 1 if self._options.broadcast else length, self._options.direction, generator)
            for one, length, generator in zip(gradient, self._walkers.lengths, generators, strict=True)
        ]
        if self._options.broadcast:
            return torch.stack(rows)
        found = torch.zeros_like(gradient)
        for row, vectors in zip(found, rows, strict=True):
            row[: len(vectors)] = vectors
        return found


def project_off(vectors: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Unit vectors orthogonal to every row of `g`: `v − QQᵀv` normalised, with `gᵀ = QR`.

    `vectors` are `[B, m, d]`, `gradient` `[B, T, d]` with T < d, `mask` `[B, T, 1]` is 0 at padding, None without any.
    O(T² d) rather than the O(d³) of a full singular value decomposition. A projection leaves an error of the size of
    what it takes away, which is little of a random vector where T is small beside d; elsewhere it is done twice.
    """
    basis = torch.linalg.householder_product(*torch.geqrf(gradient.mT))  # Q without the copies of linalg.qr
    if mask is not None:  # QR makes up a direction for the gradient of padding, which is zero
        basis = basis * mask.mT
    for _ in range(1 if 4 * gradient.shape[1] <= gradient.shape[2] else 2):
        vectors = torch.baddbmm(vectors, vectors @ basis, basis.mT, alpha=-1)
    lengths: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (lengths if mask is None else lengths.clamp_min(torch.finfo(vectors.dtype).tiny))


def null_rows(gradient: torch.Tensor, count: int, choice: str, generator: torch.Generator) -> torch.Tensor:
    """`count` rows of Vᴴ past the sequence length, `gradient` `[T, d] = UΣVᴴ`: the first, the last, or random ones."""
    length, width = gradient.shape
    rows: torch.Tensor = torch.linalg.svd(gradient, full_matrices=True).Vh
    if choice == "svd-first":
        return rows[length : length + count]
    if choice == "svd-last":
        return rows[width - count :]
    chosen = length + torch.randperm(width - length, generator=generator)[:count]
    return rows[chosen.to(rows.device)]
