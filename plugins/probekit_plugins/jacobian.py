"""The Jacobian of a layer map, `J = ∂O_l/∂e`, without ever holding it: products, and what Krylov spaces tell of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from probekit import Context
from probekit_plugins.batches import Batches, without_padding

Map = Callable[[torch.Tensor], torch.Tensor]


class Operator(Protocol):
    """A linear map for each row of a batch, known by its products: `[B, T, d]` → `[B, T, w]` and back, in float64."""

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """`A v`."""
        ...

    def transposed_times(self, vectors: torch.Tensor) -> torch.Tensor:
        """`Aᵀ u`."""
        ...

    @property
    def mask(self) -> torch.Tensor:
        """`[B, T, 1]`, 0 at padding, of which there is nothing in any product."""
        ...

    def precision(self) -> float:
        """The relative rounding error of the arithmetic in which products are computed."""
        ...


class Jacobian:
    """`J` at one point for each row of a batch: `J v` and `Jᵀ u`, `[B, T, d]` ↔ `[B, T, w]`, zero at padding.

    Both are where the embeddings are, also where the model computes `O(e)` on another device.

    One forward pass, then about one backward pass for a product. `Jᵀu` is the backward pass itself. It is linear in u,
    so `Jv` is its derivative: a backward pass through the backward pass. That needs no forward-mode derivatives, which
    quantised layers do not have; fused attention has no second derivative, so attention is computed by its formula.
    """

    def __init__(self, layer_map: Map, embeddings: torch.Tensor, mask: torch.Tensor) -> None:
        """`mask`, `[B, T, 1]`, is 0 at padding."""
        self._input = embeddings.detach().requires_grad_()
        self._mask = mask
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._output = without_padding(layer_map(self._input), mask)
            self._cotangent = torch.zeros_like(self._output, requires_grad=True)
            (self._pulled,) = torch.autograd.grad(self._output, self._input, self._cotangent, create_graph=True)

    @property
    def output(self) -> torch.Tensor:
        """`O(e)`, zero at padding, on the device where the model computes it."""
        return self._output.detach()

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """`J v`, in float64."""
        given = (vectors * self._mask).to(self._pulled)
        with sdpa_kernel(SDPBackend.MATH):
            (found,) = torch.autograd.grad(self._pulled, self._cotangent, given, retain_graph=True)
        return found.to(self._input.device, torch.float64)

    def transposed_times(self, vectors: torch.Tensor) -> torch.Tensor:
        """`Jᵀ u`, in float64."""
        with sdpa_kernel(SDPBackend.MATH):
            (found,) = torch.autograd.grad(self._output, self._input, vectors.to(self._output), retain_graph=True)
        return (found * self._mask).double()

    @property
    def mask(self) -> torch.Tensor:
        """`[B, T, 1]`, 0 at padding."""
        return self._mask

    def precision(self) -> float:
        """The relative rounding error of the arithmetic in which products are computed."""
        return max(torch.finfo(self._output.dtype).eps, torch.finfo(self._input.dtype).eps)


class Restricted:
    """`J (I − h hᵀ)`: an operator that does not see one direction h, `[B, T, d]`, of length 1."""

    def __init__(self, operator: Operator, direction: torch.Tensor) -> None:
        self._operator, self._direction = operator, direction
        self.mask, self.precision = operator.mask, operator.precision

    def _without(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors - (vectors * self._direction).sum((1, 2), keepdim=True) * self._direction

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._operator.times(self._without(vectors))

    def transposed_times(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._without(self._operator.transposed_times(vectors))


@dataclass
class Bidiagonal:
    """`J V = U B` with orthonormal columns, and `Jᵀ U = V Bᵀ + β v′ eᵀ`: what k products with J and Jᵀ each have found.

    For each of B rows: `right` are the columns of V, `[B, k, T, d]`, `left` those of U, `[B, k, T, w]`, `matrix` is the
    upper bidiagonal `B`, `[B, k, k]`, `rest` is β, `[B]`. Columns beyond the number of entries that a row has on that
    side are zero. Those of V stand in B with the row's largest entry, so that they are no small singular value.
    """

    right: torch.Tensor
    left: torch.Tensor
    matrix: torch.Tensor
    rest: torch.Tensor

    def triplets(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Approximate singular values of J, falling, `[B, k]`; their left and right vectors in the bases U and V, as
        columns, `[B, k, k]`; and their residuals, `[B, k]`.

        `‖J v‖ = σ` holds for each, up to rounding, and `‖Jᵀu − σ v‖` is the residual: a singular value of J lies no
        farther than that from σ.
        """
        left, values, right = torch.linalg.svd(self.matrix)
        return values, left, right.mT, self.rest[:, None] * left[:, -1].abs()

    def combine(self, coefficients: torch.Tensor) -> torch.Tensor:
        """`V c`: coefficients `[B, k, q]` → `[B, q, T, d]`."""
        return torch.einsum("bktd,bkq->bqtd", self.right, coefficients)


def bidiagonalise(
    operator: Operator,
    start: torch.Tensor,
    iterations: int,
    fill: Callable[[torch.Size], torch.Tensor],
    progress: Callable[[], None] = lambda: None,
) -> Bidiagonal:
    """Golub and Kahan's bidiagonalisation from `start`, `[B, T, d]`, with full reorthogonalisation, in float64.

    Where a basis is exhausted before its space is, as with an invariant subspace, it goes on with noise from
    `fill(shape)`, so that zeros are counted as often as they are there. Source: Golub and Kahan 1965; Simon and Zha
    2000.
    """
    batch, mask = start.shape[0], operator.mask.double()
    tolerance = operator.precision() * (mask.sum((1, 2)) * start.shape[2]).sqrt()
    right: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    matrix = torch.zeros(batch, iterations, iterations, dtype=torch.float64, device=start.device)
    scale = torch.zeros(batch, dtype=torch.float64, device=start.device)

    def add(basis: list[torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        """The next vector of a basis, and its length before it was normalised; 0 where noise took its place."""
        flat = _reorthogonalised(vector.flatten(1), basis)
        length: torch.Tensor = torch.linalg.vector_norm(flat, dim=1)
        exhausted = length <= tolerance * scale
        if bool(exhausted.any()):
            noise = _unit(without_padding(fill(vector.shape).to(vector), mask).flatten(1))
            left_over = _reorthogonalised(noise, basis)
            # Where the basis fills its space, nothing but rounding is left of the noise.
            full = torch.linalg.vector_norm(left_over, dim=1, keepdim=True) < 1e-8
            flat = torch.where(exhausted[:, None], torch.where(full, 0, left_over), flat)
            length = torch.where(exhausted, 0, length)
        basis.append(_unit(flat))
        return length

    rest = add(right, start.double() * mask)
    for column in range(iterations):
        pushed = operator.times(right[-1].view(start.shape))
        diagonal = add(left, pushed)
        scale = torch.maximum(scale, diagonal)
        matrix[:, column, column] = torch.where(right[-1].any(1), diagonal, scale)
        rest = add(right, operator.transposed_times(left[-1].view(pushed.shape)))
        if column + 1 < iterations:
            matrix[:, column, column + 1] = rest
        progress()
    right.pop()
    return Bidiagonal(
        torch.stack(right, 1).view(batch, iterations, *start.shape[1:]),
        torch.stack(left, 1).view(batch, iterations, *pushed.shape[1:]),
        matrix,
        rest,
    )


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Each row of `[B, n]` at length 1; zero stays zero."""
    lengths: torch.Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors / torch.where(lengths > 0, lengths, 1), 0)


def _reorthogonalised(vector: torch.Tensor, basis: list[torch.Tensor]) -> torch.Tensor:
    """`[B, n]` without its parts along a basis; twice is enough."""
    if basis:
        columns = torch.stack(basis, 1)
        for _ in range(2):
            vector = vector - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", columns, vector), columns)
    return vector


def dense(
    layer_map: Map, embeddings: torch.Tensor, at_once: int = 256, batches: Batches | None = None, where: str = "dense"
) -> torch.Tensor:
    """`J` itself for one prompt, `[T, d]` → `[T w, T d]` in float64, column by column: for small models."""
    count = embeddings.numel()

    def columns(rows: slice) -> torch.Tensor:
        chosen = torch.arange(rows.start, rows.stop, device=embeddings.device)
        vectors = torch.nn.functional.one_hot(chosen, count).to(embeddings).view(len(chosen), *embeddings.shape)
        mask = torch.ones(len(chosen), embeddings.shape[0], 1, device=embeddings.device)
        jacobian = Jacobian(layer_map, embeddings.expand(len(chosen), -1, -1), mask)
        return jacobian.times(vectors).flatten(1)

    return (batches or Batches(Context())).joined(count, columns, where, at_once).T
