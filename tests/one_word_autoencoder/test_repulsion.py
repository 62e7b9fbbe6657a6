"""Repulsions against their formulas, written out."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions
from probekit_plugins.one_word_autoencoder.figures import Directions
from probekit_plugins.one_word_autoencoder.repulsion import coding_rate, info_nce, repulsion


def drawn(count: int, width: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count), dtype=torch.float64) + 0.5


def mean_cosine(vectors: torch.Tensor) -> float:
    return Directions.of(vectors).mean_cosine


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_info_nce_is_the_denominator_over_all_other_texts() -> None:
    vectors = drawn(5, 3)
    expected = [log(sum(exp(cosine(vectors[i], vectors[j]) / 0.3) for j in range(5) if j != i)) for i in range(5)]
    assert float(info_nce(vectors, 0.3)) == pytest.approx(sum(expected) / 5)


@pytest.mark.parametrize(("count", "width"), [(5, 3), (3, 5), (4, 4)])
def test_the_coding_rate_is_its_formula_whichever_side_is_longer(count: int, width: int) -> None:
    vectors = drawn(count, width)
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    matrix = torch.eye(width, dtype=torch.float64) + width / (count * 0.5) * unit.T @ unit
    expected = 0.5 * float(torch.linalg.slogdet(matrix).logabsdet)
    assert float(coding_rate(vectors, 0.5)) == pytest.approx(expected)
    assert Directions.of(vectors).coding_rate(0.5) == pytest.approx(expected)


@pytest.mark.parametrize("width", [4, 9])
def test_the_mean_cosine_is_that_of_all_pairs(width: int) -> None:
    vectors = drawn(6, width)
    pairs = [cosine(vectors[i], vectors[j]) for i in range(6) for j in range(6) if i != j]
    assert mean_cosine(vectors) == pytest.approx(sum(pairs) / 30)
    assert mean_cosine(torch.ones(3, 4)) == pytest.approx(1)


def test_lengths_of_vectors_do_not_count() -> None:
    vectors = drawn(6, 4)
    longer = vectors * torch.arange(1, 7)[:, None]
    assert float(info_nce(longer, 0.1)) == pytest.approx(float(info_nce(vectors, 0.1)))
    assert float(coding_rate(longer, 0.5)) == pytest.approx(float(coding_rate(vectors, 0.5)))


@pytest.mark.parametrize(
    ("kind", "falls"), [("info-nce", True), ("coding-rate", True), ("coding-rate-as-printed", False)]
)
def test_descent_spreads_vectors_and_as_printed_it_collapses_them(kind: str, falls: bool) -> None:
    vectors = drawn(12, 8).requires_grad_()
    optimizer = torch.optim.Adam([vectors], 0.05)
    before = mean_cosine(vectors.detach())
    for _ in range(300):
        optimizer.zero_grad()
        repulsion(kind, vectors, OneWordAutoencoderOptions()).backward()
        optimizer.step()
    unit = torch.nn.functional.normalize(vectors.detach(), dim=-1)
    on_a_line = float((unit @ unit.T).abs().min()) > 0.99
    assert (mean_cosine(unit) < min(before, 0.05)) if falls else on_a_line
