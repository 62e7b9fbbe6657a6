"""Decoders against independent computations in float64."""

from __future__ import annotations

import pytest
import torch

from probekit.decoding import CosineDecoder, NearestDecoder, PseudoInverseDecoder, margins
from probekit.decoding.decoders import top_k

VOCABULARY, WIDTH = 97, 12


@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def embeddings() -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_pseudo_inverse_scores_are_those_of_torch_pinv(matrix: torch.Tensor, embeddings: torch.Tensor) -> None:
    expected = embeddings.double() @ torch.linalg.pinv(matrix.double())
    assert relative_error(PseudoInverseDecoder(matrix).scores(embeddings), expected) < 1e-6


def test_pseudo_inverse_is_the_limit_of_the_regularised_inverse(matrix: torch.Tensor, embeddings: torch.Tensor) -> None:
    W = matrix.double()
    scores = PseudoInverseDecoder(matrix.double()).scores(embeddings)
    errors = []
    for alpha in (1e-2, 1e-4, 1e-6):
        regularised = torch.linalg.inv(W.T @ W + alpha * torch.eye(WIDTH, dtype=torch.float64)) @ W.T
        errors.append(relative_error(embeddings.double() @ regularised, scores))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-7


def test_pseudo_inverse_gives_the_solution_of_least_norm(matrix: torch.Tensor, embeddings: torch.Tensor) -> None:
    W, e = matrix.double(), embeddings.double()
    a = PseudoInverseDecoder(W).scores(e)
    assert relative_error(a @ W, e) < 1e-12, "a solves Wᵀa = e"
    other = a + torch.randn(VOCABULARY, dtype=torch.float64) @ (torch.eye(VOCABULARY) - W @ torch.linalg.pinv(W))
    assert relative_error(other @ W, e) < 1e-10, "another solution"
    assert bool((a.norm(dim=-1) < other.norm(dim=-1)).all())


def test_a_singular_gram_matrix_is_said_and_solved(matrix: torch.Tensor) -> None:
    matrix = matrix.clone()
    matrix[:, 3] = matrix[:, 0] + matrix[:, 1]
    decoder = PseudoInverseDecoder(matrix)
    assert decoder.rank == WIDTH - 1
    expected = matrix.double() @ torch.linalg.pinv(matrix.double(), rtol=1e-6)
    assert relative_error(decoder.scores(matrix), expected) < 1e-5
    assert PseudoInverseDecoder(matrix[:, :3]).rank == 3, "a matrix of full rank is not called singular"


def test_more_dimensions_than_tokens_is_singular_and_still_decodes() -> None:
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(2))
    decoder = PseudoInverseDecoder(matrix)
    assert decoder.rank == 5
    assert decoder.scores(matrix).argmax(-1).tolist() == list(range(5))


def test_nearest_is_the_row_at_least_distance(matrix: torch.Tensor, embeddings: torch.Tensor) -> None:
    expected = torch.cdist(embeddings.double(), matrix.double()).argmin(-1)
    assert torch.equal(NearestDecoder(matrix).scores(embeddings).argmax(-1), expected)


def test_cosine_is_the_row_at_least_angle_and_survives_zeros(matrix: torch.Tensor, embeddings: torch.Tensor) -> None:
    matrix = matrix.clone()
    matrix[7] = 0
    expected = torch.nn.functional.cosine_similarity(embeddings.double()[..., None, :], matrix.double(), dim=-1)
    found = CosineDecoder(matrix).scores(embeddings)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert bool((found[..., 7] == 0).all())


def test_the_pseudo_inverse_is_not_the_nearest_neighbour() -> None:
    """A whitened dot product: it prefers a long row in the same direction, where distance does not."""
    matrix = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 1.0]])
    embedding = torch.tensor([[1.0, 0.0]])
    assert int(NearestDecoder(matrix).scores(embedding).argmax()) == 0
    assert int(PseudoInverseDecoder(matrix).scores(embedding).argmax()) == 1


def test_top_k_in_pieces_is_top_k_at_once(
    matrix: torch.Tensor, embeddings: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = NearestDecoder(matrix)
    expected = decoder.scores(embeddings).topk(4).indices
    monkeypatch.setattr("probekit.decoding.decoders.PAIRS_AT_ONCE", VOCABULARY * 3)
    assert torch.equal(top_k(decoder, embeddings, 4, VOCABULARY), expected)


def test_margins_are_the_own_score_less_the_best_other(matrix: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit.decoding.decoders.PAIRS_AT_ONCE", VOCABULARY * 10)
    W = matrix.double()
    h = W @ torch.linalg.inv(W.T @ W) @ W.T
    expected, rivals = [], []
    for i in range(VOCABULARY):
        others = torch.cat([h[i, :i], torch.tensor([-torch.inf]), h[i, i + 1 :]])
        expected.append(float(h[i, i] - others.max()))
        rivals.append(int(others.argmax()))
    seen: list[int] = []
    found, found_rivals = margins(PseudoInverseDecoder(W), W, seen.append)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert found_rivals.tolist() == rivals
    assert seen[-1] == VOCABULARY
    assert seen == sorted(seen)


def test_two_equal_tokens_tie(matrix: torch.Tensor) -> None:
    matrix = matrix.clone()
    matrix[5] = matrix[40]
    found, rivals = margins(NearestDecoder(matrix), matrix)
    assert float(found[5]) == 0.0
    assert int(rivals[5]) == 40
