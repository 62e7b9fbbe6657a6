"""Steps along the smallest singular directions of the Jacobian, and corrections back onto the level set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from probekit import Result
from probekit_plugins.jacobian import Bidiagonal, Jacobian, Restricted, bidiagonalise
from probekit_plugins.walks.journey import Memoryless, Track
from probekit_plugins.walks.scoring import walk
from probekit_plugins.walks.walkers import Walkers

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.null_space_walk import NullSpaceWalkOptions


def run(subject: Subject, prompts: Sequence[Prompt], options: NullSpaceWalkOptions, context: Context) -> Result:
    """The walk, and its control in random directions."""

    def graph(walkers: Walkers) -> list[torch.Tensor]:
        """As much as the Jacobian keeps: a forward pass, and a backward pass with a graph of about twice its size."""
        with sdpa_kernel(SDPBackend.MATH):
            return [walkers.loss(walkers.embeddings.clone().requires_grad_()) for _ in range(3)]

    def tracks(walkers: Walkers) -> list[Track]:
        iterations = min(max(options.iterations, options.correction_iterations), walkers.embeddings[0].numel())
        # Two bases in double precision, once as they grow and once as they are joined, and the span.
        vectors = 8 * iterations + 2 * options.directions
        found = [Track("null space", lambda walkers: NullSpace(walkers, options), graph=graph, vectors=vectors)]
        if options.control:
            found.append(Track("random", lambda walkers: RandomDirection(walkers, options)))
        return found

    return walk(subject, prompts, options, context, tracks)


class RandomDirection(Memoryless):
    """`u = η√T v` with v a random unit vector in all T·d entries, the same at every step."""

    def __init__(self, walkers: Walkers, options: NullSpaceWalkOptions) -> None:
        self._direction = unit(walkers.noise(walkers.generators("direction")))
        self._length = step_lengths(walkers, options)

    def __call__(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        return self._length * self._direction


class NullSpace:
    """`u = η√T v + δ`: v in the span of J's q smallest right singular vectors, δ with `‖J δ + ρ‖² + λ²‖δ‖²` least.

    Which v: the last step's direction, projected onto the span, so that the walk goes on and does not turn back; at
    first `Σ c_i v_i / σ_i` with random c, so that each walker has its own way.
    """

    def __init__(self, walkers: Walkers, options: NullSpaceWalkOptions) -> None:
        self._walkers, self._options = walkers, options
        self._length = step_lengths(walkers, options)
        self._entries = walkers.embeddings[0].numel()
        self._span: torch.Tensor | None = None  # [B, q, T, d], orthonormal
        self._heading: torch.Tensor | None = None  # [B, T, d], a unit vector

    def __call__(self, embeddings: torch.Tensor, step: int) -> torch.Tensor:
        options = self._options
        jacobian = None
        if self._span is None or step % options.relinearise == 0:
            jacobian = Jacobian(self._walkers.layer_map, embeddings, self._walkers.mask)
            self._linearise(jacobian, step)
        assert self._span is not None
        assert self._heading is not None
        inside = torch.einsum("bqtd,btd->bq", self._span, self._heading)
        self._heading = unit(torch.einsum("bqtd,bq->btd", self._span, inside))
        moved = self._length * self._heading.to(embeddings)
        for number in range(options.corrections):
            moved = moved + self._correction(embeddings + moved, f"{step}, {number}")
        return moved

    def _linearise(self, jacobian: Jacobian, step: int) -> None:
        """The span at this point: the Krylov space starts from the last heading, which is nearly in it."""
        walkers, iterations = self._walkers, min(self._options.iterations, self._entries)
        count = min(self._options.directions, iterations)
        start = walkers.noise(walkers.generators("start")) if self._heading is None else self._heading
        found = bidiagonalise(jacobian, start, iterations, self._fill(f"linearise {step}"))
        values, _, right, _ = found.triplets()
        self._span = found.combine(right[..., -count:])
        if self._heading is None:
            drawn = [torch.randn(count, generator=each) for each in walkers.generators("heading")]
            weights = torch.stack(drawn).to(values) / values[:, -count:].clamp_min(1e-9 * values[:, :1])
            self._heading = unit(torch.einsum("bqtd,bq->btd", self._span, weights))

    def _correction(self, embeddings: torch.Tensor, label: str) -> torch.Tensor:
        """The damped Gauss-Newton step from here among those without a share along the heading."""
        walkers = self._walkers
        assert self._heading is not None
        jacobian = Jacobian(walkers.layer_map, embeddings, walkers.mask)
        # Free to go along the heading, the best step would lead straight back to the prompt.
        across = Restricted(jacobian, self._heading)
        residual = walkers.displacement(jacobian.output).to(embeddings.device, torch.float64)
        iterations = min(self._options.correction_iterations, self._entries)
        start = across.transposed_times(residual)
        found = bidiagonalise(across, start, iterations, self._fill(f"correct {label}"))
        return damped_least_squares(found, residual, self._options.damping).to(embeddings)

    def _fill(self, label: str) -> Callable[[torch.Size], torch.Tensor]:
        walkers = self._walkers
        return lambda shape: torch.stack(
            [torch.randn(shape[1:], generator=generator) for generator in walkers.generators(f"fill, {label}")]
        )

    def state(self) -> dict[str, torch.Tensor]:
        found = {"span": self._span, "heading": self._heading}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._span, self._heading = state.get("span"), state.get("heading")


def damped_least_squares(found: Bidiagonal, residual: torch.Tensor, damping: float) -> torch.Tensor:
    """The δ in the span of V for which `‖J δ + ρ‖² + λ²‖δ‖²` is least, `λ = damping · σ_max`; `[B, T, d]`.

    With `J V = U B` and `B = X Σ Yᵀ`: `δ = −V Y Σ (Σ² + λ²)⁻¹ Xᵀ Uᵀ ρ`. Source: Levenberg 1944, Marquardt 1963.
    """
    values, left, right, _ = found.triplets()
    wanted = torch.einsum("bkj,bk->bj", left, torch.einsum("bktw,btw->bk", found.left, residual))
    gains = values / (values.square() + (damping * values[:, :1]).square()).clamp_min(torch.finfo(values.dtype).tiny)
    return -found.combine(torch.einsum("bkj,bj->bk", right, gains * wanted)[..., None])[:, 0]


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Each row at length 1 over all its entries."""
    lengths: torch.Tensor = torch.linalg.vector_norm(vectors, dim=(1, 2), keepdim=True)
    return vectors / lengths


def step_lengths(walkers: Walkers, options: NullSpaceWalkOptions) -> torch.Tensor:
    """`η√T` for each row, `[B, 1, 1]`."""
    lengths = torch.tensor(walkers.lengths).to(walkers.embeddings)
    return options.step_size * lengths.sqrt()[:, None, None]
