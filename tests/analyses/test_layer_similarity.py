"""The layer similarity against CKA written out in float64 on all tokens at once, and the limits that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.layer_similarity import LayerSimilarity, LayerSimilarityOptions
from probekit_plugins.layer_similarity.hsic import centred_gram, hsic
from probekit_plugins.layer_similarity.minibatches import Minibatches
from tests.analyses.activations import PROMPTS, analysed, batch, drawn, one_by_one, ran
from tests.analyses.recovering import gpt2

SITES = ["embedding", "block.0", "block.1", "norm"]


def similarity(**options: Any) -> LayerSimilarity:
    return LayerSimilarity(LayerSimilarityOptions(**options))


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(X: torch.Tensor, Y: torch.Tensor) -> float:
    """HSIC₁ as Song et al. have it, with traces and vectors of ones."""
    n = len(X)
    K, L = X @ X.T, Y @ Y.T
    K.fill_diagonal_(0)
    L.fill_diagonal_(0)
    ones = torch.ones(n, dtype=X.dtype)
    first = (K * L).sum()  # tr(K L) of symmetric matrices
    second = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (ones @ K @ L @ ones)
    return float((first + second - third) / (n * (n - 3)))


def direct(X: torch.Tensor, Y: torch.Tensor) -> float:
    """CKA of all rows at once, unbiased."""
    return written_out(X, Y) / math.sqrt(written_out(X, X) * written_out(Y, Y))


def biased(X: torch.Tensor, Y: torch.Tensor) -> float:
    """CKA as Kornblith et al. have it: ‖Yᵀ X‖_F² / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F) of centred columns."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return float((Y.T @ X).square().sum() / ((X.T @ X).norm() * (Y.T @ Y).norm()))


def cka(result: probekit.Result, site: str, other: str) -> float:
    [found] = [row["cka"] for row in result.tables["pairs"] if (row["site"], row["other"]) == (site, other)]
    assert isinstance(found, float)
    return found


def compared(*activations: torch.Tensor, batches: int = 1, **options: Any) -> probekit.Result:
    """Sites a, b, … with these rows `[tokens, width]`, one token a prompt."""
    named = dict(zip("abcdef", activations, strict=False))
    step = len(activations[0]) // batches
    parts = [
        batch({site: rows[start : start + step, None] for site, rows in named.items()}, first=start)
        for start in range(0, len(activations[0]), step)
    ]
    return analysed(similarity(**{"skip_first": 0, **options}), *parts)


# --- against all tokens at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1])
def test_one_minibatch_is_cka_of_all_tokens_at_once(subject: probekit.Subject, skip: int) -> None:
    result = ran(similarity(sites=SITES, skip_first=skip), subject)
    rows = {site: torch.cat([rows[skip:] for rows in one_by_one(subject, site)]) for site in SITES}
    assert result.metrics["minibatches"] == 1
    assert result.metrics["tokens_compared"] == len(rows["norm"])
    for row, site in enumerate(SITES):
        for other in SITES[row + 1 :]:
            assert cka(result, site, other) == pytest.approx(direct(rows[site], rows[other]), abs=1e-5)


@pytest.mark.parametrize("count", [4, 5, 30])
def test_hsic_is_what_the_paper_writes(count: int) -> None:
    X, Y = normal(count, 7) + 5, normal(count, 3, seed=1) - 2
    found = hsic([centred_gram(X), centred_gram(Y)])
    expected = [[written_out(X, X), written_out(X, Y)], [written_out(X, Y), written_out(Y, Y)]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_many_minibatches_come_close_to_all_tokens_at_once() -> None:
    X = normal(4000, 20) * torch.arange(1, 21)
    Y = X[:, :10] + 5 * normal(4000, 10, seed=1)
    expected = direct(X, Y)
    result = compared(X, Y, minibatch=64)
    assert result.metrics["minibatches"] == 63
    [pair] = result.tables["pairs"]
    assert pair["cka"] == pytest.approx(expected, abs=0.02)
    assert abs(float(pair["cka"] or 0) - expected) < 4 * float(pair["error"] or 0) < 0.05
    # What the estimator is for: with so few rows the biased one is far off.
    assert biased(X[:64], Y[:64]) - expected > 0.03


def test_tokens_of_one_prompt_are_spread_over_minibatches() -> None:
    """Two sites agree on which prompt a token is of, and on nothing else: minibatches of one prompt would miss it."""
    own = 3 * normal(40, 1, 8).expand(40, 50, 8).reshape(2000, 8)
    X, Y = own + normal(2000, 8, seed=1), own + normal(2000, 8, seed=2)
    expected = direct(X, Y)
    assert cka(compared(X, Y, minibatch=50), "a", "b") == pytest.approx(expected, abs=0.01)
    one_at_a_time = compared(X, Y, minibatch=50, buffer_memory=1e-9)
    assert cka(one_at_a_time, "a", "b") < 0.1 < 0.8 < expected


def test_the_error_is_the_spread_over_repetitions() -> None:
    found, errors = [], []
    for seed in range(40):
        X = normal(2048, 6, seed=seed) * torch.tensor([3, 2, 1, 1, 1, 1])
        [pair] = compared(X, X + 2 * normal(2048, 6, seed=1000 + seed), minibatch=16).tables["pairs"]
        found.append(float(pair["cka"] or 0))
        errors.append(float(pair["error"] or 0))
    spread = float(torch.tensor(found).std())
    assert 0.6 < float(torch.tensor(errors).square().mean().sqrt()) / spread < 1.6


# --- known limits -----------------------------------------------------------------------------------------------------


def test_a_rotation_a_scale_and_a_shift_change_nothing() -> None:
    X = normal(600, 12) * torch.arange(1, 13)
    rotation, _ = torch.linalg.qr(normal(12, 12, seed=1))
    result = compared(X, 0.01 * X @ rotation + 300, minibatch=100)
    assert cka(result, "a", "b") == pytest.approx(1.0, abs=1e-9)


def test_a_wider_copy_is_the_same_representation() -> None:
    X = normal(300, 5)
    into, _ = torch.linalg.qr(normal(9, 5, seed=1))
    result = compared(X, X @ into.T)
    assert cka(result, "a", "b") == pytest.approx(1.0, abs=1e-9)
    [neighbours] = result.tables["neighbours"]
    assert (neighbours["cosine"], neighbours["angle"]) == (None, None)


def test_independent_noise_has_nothing_in_common() -> None:
    """Where the biased estimator says that it has: of 64 rows of width 50, by nearly a half."""
    X, Y = normal(6400, 50), normal(6400, 50, seed=1)
    [pair] = compared(X, Y, minibatch=64).tables["pairs"]
    assert abs(float(pair["cka"] or 0)) < 0.01
    assert biased(X[:64], Y[:64]) > 0.4


def test_figures_do_not_depend_on_the_batches() -> None:
    X = normal(3600, 6)
    Y = X + normal(3600, 6, seed=1)
    ways = [compared(X, Y, batches=count, minibatch=50).tables["pairs"] for count in (1, 9, 3600)]
    assert ways[0] == ways[1] == ways[2]


def test_the_first_positions_do_not_count() -> None:
    """A first token with an activation of its own would make all layers alike."""
    X, Y = normal(200, 5, 8), normal(200, 5, 8, seed=1)
    X[:, 0, 3] = Y[:, 0, 2] = 1000
    activations = {"a": X, "b": Y}
    assert cka(analysed(similarity(skip_first=0), batch(activations)), "a", "b") > 0.99
    assert abs(cka(analysed(similarity(), batch(activations)), "a", "b")) < 0.05


# --- neighbours and runs ----------------------------------------------------------------------------------------------


def test_cosines_and_angles_are_those_of_each_token(subject: probekit.Subject) -> None:
    result = ran(similarity(sites=SITES), subject)
    rows = {site: torch.cat([rows[1:] for rows in one_by_one(subject, site)]) for site in SITES}
    for found, (before, after) in zip(result.tables["neighbours"], pairwise(SITES), strict=True):
        cosines = torch.nn.functional.cosine_similarity(rows[before], rows[after])
        assert (found["before"], found["site"]) == (before, after)
        assert found["cosine"] == pytest.approx(float(cosines.mean()), abs=1e-6)
        assert found["angle"] == pytest.approx(float(cosines.arccos().mean()) / math.pi, abs=1e-6)


def test_runs_of_alike_sites_are_found_and_told() -> None:
    """b, c and d are one representation; a and e are others."""
    X = normal(400, 8)
    sites = [normal(400, 8, seed=1), X, X + 0.01 * normal(400, 8, seed=2), 2 * X, normal(400, 8, seed=3)]
    result = compared(*sites)
    [run] = result.tables["runs"]
    assert (run["first"], run["last"], run["sites"]) == ("b", "d", 3)
    assert run["least_cka"] == pytest.approx(min(cka(result, "b", "c"), cka(result, "c", "d"), cka(result, "b", "d")))
    assert result.metrics["longest_run"] == 3
    assert "b to d are alike: every pair has a CKA of at least 1.000" in result.finding
    assert "c turns activations the least" in result.finding or "d turns activations the least" in result.finding


def test_a_run_needs_every_pair_to_be_alike() -> None:
    """Each is alike to the next, and the first is not to the last: two runs that overlap."""
    X, Y = normal(4000, 8), normal(4000, 8, seed=1)
    sites = [math.cos(angle) * X + math.sin(angle) * Y for angle in (0.0, 0.5, 1.0)]
    runs = compared(*sites, alike=0.5).tables["runs"]
    assert [(run["first"], run["last"]) for run in runs] == [("a", "b"), ("b", "c")]


def test_where_nothing_is_alike_the_most_alike_are_named() -> None:
    X = normal(300, 8)
    result = compared(X, normal(300, 8, seed=1), X + normal(300, 8, seed=2))
    assert result.tables["runs"] == []
    assert "no two neighbours are alike (CKA of at least 0.95); the most alike sites are a and c" in result.finding


# --- little, odd and broken -------------------------------------------------------------------------------------------


def test_without_a_token_that_counts_it_ends_in_a_sentence(subject: probekit.Subject) -> None:
    with pytest.raises(probekit.AnalysisError, match=r"No token is left to compare: .* -o skip_first=0"):
        ran(similarity(), subject, [[5]])


def test_fewer_tokens_than_cka_needs_still_have_angles(subject: probekit.Subject, tmp_path: Path) -> None:
    analysis = similarity(skip_first=0)
    result = ran(analysis, subject, [[5]])
    assert {row["cka"] for row in result.tables["pairs"]} == {None}
    assert isinstance(result.tables["neighbours"][0]["angle"], float)
    assert any("needs at least 4 tokens" in note for note in result.notes)
    assert drawn(analysis, result, tmp_path)


def test_four_tokens_have_cka_without_an_error(subject: probekit.Subject) -> None:
    result = ran(similarity(), subject, [[5, 17, 2, 40, 8]])
    assert isinstance(result.tables["pairs"][0]["cka"], float)
    assert result.tables["pairs"][0]["error"] is None
    assert any("nothing to tell the error of CKA from" in note for note in result.notes)


def test_a_site_that_does_not_vary_has_no_cka(tmp_path: Path) -> None:
    still = torch.rand(9, generator=torch.Generator().manual_seed(0)).expand(50, 9)
    X = normal(50, 9)
    result = compared(X, still, X)
    assert [row["cka"] is None for row in result.tables["pairs"]] == [True, False, True]
    assert any("the same activation at b," in note for note in result.notes)
    blocks = drawn(similarity(), result, tmp_path)
    [heatmap] = [block for block in blocks if block["type"] == "heatmap"]
    assert heatmap["values"][1] == [None, None, None]
    assert heatmap["values"][0] == [1.0, None, pytest.approx(1.0)]


def test_one_site_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(probekit.AnalysisError, match=r"a is the only one; give at least two"):
        compared(normal(10, 3))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_activation_that_is_not_finite_ends_it_in_a_sentence_with_its_site(value: float) -> None:
    X, Y = normal(10, 3), normal(10, 3)
    Y[4, 1] = value
    with pytest.raises(probekit.AnalysisError, match=r"at b is NaN or infinite, first at position 0 of prompt 5;"):
        compared(X, Y)


def test_tokens_of_length_zero_have_no_angle() -> None:
    X = normal(20, 3)
    Y = X.clone()
    Y[:5] = 0
    [found] = compared(X, Y).tables["neighbours"]
    assert found["cosine"] == pytest.approx(1.0)
    [nothing] = compared(X, torch.zeros(20, 3)).tables["neighbours"]
    assert nothing["cosine"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_more(dtype: torch.dtype) -> None:
    X, Y = ((1000 * normal(300, 8, seed=seed)).to(dtype) for seed in (0, 1))
    assert compared(X, Y).metrics == compared(X.double(), Y.double()).metrics


def test_further_axes_of_a_site_are_one_width() -> None:
    X, Y = normal(40, 1, 3, 4), normal(40, 1, 5, seed=1)
    several = analysed(similarity(skip_first=0), batch({"a": X, "b": Y}))
    assert several.metrics == analysed(similarity(skip_first=0), batch({"a": X.flatten(2), "b": Y})).metrics


# --- minibatches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[1] * 333, [333], [100, 3, 230]], ids=len)
def test_rows_are_dealt_whole_and_each_once(parts: Sequence[int]) -> None:
    minibatches = Minibatches(10, 4 * 80, {"a": 1}, torch.Generator().manual_seed(0))
    rows = torch.arange(333.0)[:, None]
    dealt = [[m["a"].clone() for m in buffer] for part in rows.split(parts) for buffer in minibatches.add({"a": part})]
    assert [len(buffer) for buffer in dealt] == [8] * 4
    assert 10 < float(dealt[0][0].std()) < 40, "a sample of the first eighty"
    rest = [m["a"] for m in minibatches.rest()]
    assert sorted(len(each) for each in rest) == [6, 7]
    everything = torch.cat([minibatch for buffer in [*dealt, rest] for minibatch in buffer]).flatten()
    assert everything.sort().values.tolist() == rows.flatten().tolist()


def test_a_buffer_takes_bounded_memory() -> None:
    minibatches = Minibatches(100, 4 * 100 * 7 * 3, {"a": 3, "b": 4}, torch.Generator())
    rows = {"a": torch.zeros(700, 3), "b": torch.zeros(700, 4)}
    assert [len(buffer) for buffer in minibatches.add(rows)] == [3, 3]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_every_pair_and_every_neighbour(subject: probekit.Subject, tmp_path: Path) -> None:
    analysis = similarity(sites=SITES)
    result = ran(analysis, subject, PROMPTS)
    blocks = drawn(analysis, result, tmp_path)
    [heatmap] = [block for block in blocks if block["type"] == "heatmap"]
    assert heatmap["x_labels"] == heatmap["y_labels"] == SITES
    for row, site in enumerate(SITES):
        assert heatmap["values"][row][row] == 1.0
        for column in range(row + 1, len(SITES)):
            value = cka(result, site, SITES[column])
            assert heatmap["values"][row][column] == heatmap["values"][column][row] == value
    [lines] = [block for block in blocks if block["type"] == "lines"]
    cosines = [row["cosine"] for row in result.tables["neighbours"]]
    assert [line["points"] for line in lines["series"] if line["name"] == "mean cosine"] == [
        [[site, cosine] for site, cosine in zip(SITES[1:], cosines, strict=True)]
    ]


@pytest.mark.parametrize("options", [{"minibatch": 4}, {"alike": 0}, {"skip_first": -1}], ids=str)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LayerSimilarityOptions(**options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_figures_are_those_of_the_cpu() -> None:
    X, Y = normal(600, 8), normal(600, 8, seed=1)
    here, there = compared(X, Y, minibatch=64), compared(X.cuda(), Y.cuda(), minibatch=64)
    assert there.metrics == pytest.approx(here.metrics, rel=1e-9)
