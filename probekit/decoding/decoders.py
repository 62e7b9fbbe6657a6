"""Decoders: a score for every token given an embedding; the highest is the decoded token.

`W` is the token embedding matrix, `V × d`, one row a token; embeddings `e` are `[…, d]`, scores `[…, V]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

# Scores of this many (embedding, token) pairs are held at a time: 256 MiB in fp32.
PAIRS_AT_ONCE = 1 << 26
# The Gram matrix is formed in so many panels.
PANELS = 6


class Decoder(Protocol):
    """Anything that scores all tokens for each embedding, higher is likelier."""

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`[…, d]` → `[…, V]`."""
        ...


class PseudoInverseDecoder:
    """`scores = e (WᵀW)⁻¹ Wᵀ`: the pseudo-inverse of the embedding, applied to an embedding.

    `a = W⁺ᵀe` is the solution of `Wᵀa = e` with the least L2 norm, so this is a whitened dot product, not the nearest
    neighbour. The `d × d` Gram matrix is formed and factored in float64 (Cholesky), which replaces the SVD of a `V ×
    d` matrix. If it is singular, its eigendecomposition gives the pseudo-inverse over the directions that are there,
    and `rank < d` says so.

    Source: Sentence Representation with Language Models, equation 3; Penrose 1955 for the minimum norm.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix.detach()
        width = matrix.shape[1]
        gram = _gram(self._matrix)
        factor, failed = torch.linalg.cholesky_ex(gram)
        diagonal = factor.diagonal()
        # The squared ratio of the pivots bounds the condition number from below.
        singular = bool(failed) or float(diagonal.min() / diagonal.max()) ** 2 < width * torch.finfo(torch.float64).eps
        if singular:
            values, vectors = torch.linalg.eigh(gram)
            kept = values > values.max() * width * torch.finfo(torch.float64).eps
            self.rank = int(kept.sum())
            inverse = torch.where(kept, 1 / torch.where(kept, values, 1), 0)
            self._inverse_gram = (vectors * inverse) @ vectors.T
        else:
            self.rank = width
            self._inverse_gram = torch.cholesky_inverse(factor)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        whitened = embeddings.to(self._matrix.device, torch.float64) @ self._inverse_gram
        scores: torch.Tensor = whitened.to(self._matrix.dtype) @ self._matrix.T
        return scores


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """`WᵀW` in float64, from its upper panels alone: it is symmetric, which saves nearly half of the products."""
    width = matrix.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=matrix.device)
    starts = range(0, width, max(1, -(-width // PANELS)))
    for part in matrix.split(8192):
        rows = part.double()
        for start, stop in zip(starts, [*starts[1:], width], strict=True):
            gram[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]
    return gram.triu() + gram.triu(1).T


class NearestDecoder:
    """`scores = −½‖e − w_i‖² + ½‖e‖² = e·w_i − ½‖w_i‖²`: the highest is the nearest row in L2."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix.detach()
        squares = [part.double().square().sum(-1) for part in self._matrix.split(8192)]
        self._half_squares = torch.cat(squares).mul(0.5).to(matrix.dtype)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.to(self._matrix) @ self._matrix.T - self._half_squares


class CosineDecoder:
    """`scores = cos(e, w_i)`; a row of zeros scores 0."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._directions = torch.nn.functional.normalize(matrix.detach(), dim=-1)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        directions = torch.nn.functional.normalize(embeddings.to(self._directions), dim=-1)
        return directions @ self._directions.T


def in_rows(embeddings: torch.Tensor, vocabulary: int) -> Iterator[torch.Tensor]:
    """The embeddings as `[rows, d]` pieces, small enough to hold the scores of a piece."""
    yield from embeddings.reshape(-1, embeddings.shape[-1]).split(max(1, PAIRS_AT_ONCE // vocabulary))


def top_k(decoder: Decoder, embeddings: torch.Tensor, k: int, vocabulary: int) -> torch.Tensor:
    """The k highest-scored tokens of each embedding, best first: `[…, d]` → ids `[…, k]`."""
    found = [decoder.scores(rows).topk(k, dim=-1).indices for rows in in_rows(embeddings, vocabulary)]
    return torch.cat(found).reshape(*embeddings.shape[:-1], k)


def margins(
    decoder: Decoder, matrix: torch.Tensor, progress: Callable[[int], None] = lambda rows: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How safely each token decodes to itself: `h_ii − max_{j≠i} h_ij`, with `h_ij` the score of token j for row i.

    Returns the margins `[V]` and the strongest other token `[V]`. A token round-trips if its margin is positive; 0 is
    a tie. `progress` is called with the number of rows done.
    """
    gaps, rivals = [], []
    start = 0
    for rows in in_rows(matrix, matrix.shape[0]):
        scores = decoder.scores(rows)
        own = torch.arange(start, start + len(rows), device=scores.device)[:, None]
        mine = scores.gather(1, own).squeeze(1)
        best, rival = scores.scatter(1, own, -torch.inf).max(-1)
        gaps.append(mine - best)
        rivals.append(rival)
        start += len(rows)
        progress(start)
    return torch.cat(gaps), torch.cat(rivals)
