"""How likely each token is given its activation: right tokens first, and scores that are figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.batches import Batches
from probekit_plugins.token_likelihood import Fit, TokenLikelihood, sampled_prompts
from tests.analyses.recovering import OTHER, PROMPT, SITE, few_samples, gpt2, llama
from tests.forward.tiny import named


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def fitted(subject: probekit.Subject, site: str = SITE, count: int = 96) -> TokenLikelihood:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(subject.vocabulary, (count, 8), generator=generator)]
    context = probekit.Context()
    return TokenLikelihood(subject, site, prompts, Batches(context), context)


@pytest.fixture(scope="module")
def likelihood(subject: probekit.Subject) -> TokenLikelihood:
    return fitted(subject)


def ranks(scores: torch.Tensor, ids: Sequence[int]) -> list[int]:
    """How many tokens come before the right one."""
    right = scores.gather(1, torch.tensor(ids)[:, None])
    return (scores > right).sum(1).tolist()


def activations(subject: probekit.Subject, ids: Sequence[int], site: str = SITE) -> torch.Tensor:
    return subject.capture(torch.tensor([list(ids)]), [site])[site][0]


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("site", ["embedding", "block.0", "norm", "logits"])
def test_right_tokens_of_an_untrained_model_come_first(make: Any, site: str) -> None:
    subject = make(initializer_range=0.02)
    found = fitted(subject, site)
    for ids in (PROMPT, OTHER):
        scores = found.scores(activations(subject, ids, site))
        assert scores.shape == (8, 60)
        assert bool(scores.isfinite().all())
        assert ranks(scores, ids) == [0] * 8
        assert found.likeliest(activations(subject, ids, site)).flatten().tolist() == ids


def test_the_first_position_has_a_model_of_its_own(subject: probekit.Subject, likelihood: TokenLikelihood) -> None:
    """Every token alone is known to it."""
    firsts = torch.cat([likelihood.scores(activations(subject, [token])) for token in range(60)])
    assert ranks(firsts, list(range(60))) == [0] * 60


def test_scores_of_some_positions_are_those_of_all(subject: probekit.Subject, likelihood: TokenLikelihood) -> None:
    """Wherever they begin and end, with a position that is not finite among them, and with a prior."""
    for found, site in ((likelihood, SITE), (fitted(subject, "norm"), "norm")):
        given = activations(subject, PROMPT, site).clone()
        given[4] = torch.nan
        whole = found.scores(given)
        for first in range(8):
            for end in range(first + 1, 9):
                torch.testing.assert_close(found.scores(given, first, end), whole[first:end], rtol=1e-4, atol=1e-4)


def test_the_likeliest_are_those_of_all_at_once(
    subject: probekit.Subject, likelihood: TokenLikelihood, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = activations(subject, PROMPT)
    expected = likelihood.scores(given).argsort(descending=True)
    for at_once in (100, 1, 3, 8):
        monkeypatch.setattr("probekit_plugins.token_likelihood.AT_ONCE", at_once)
        assert torch.equal(likelihood.likeliest(given), expected[:, :1])
        assert torch.equal(likelihood.likeliest(given, 5), expected[:, :5])
        assert torch.equal(likelihood.likeliest(given, 60), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_positions_that_are_not_finite_score_zero_and_leave_the_others(
    subject: probekit.Subject, likelihood: TokenLikelihood, value: float
) -> None:
    given = activations(subject, PROMPT).clone()
    plain = likelihood.scores(given)
    given[0, 3] = given[5, 0] = value
    found = likelihood.scores(given)
    assert not found[0].any()
    assert not found[5].any()
    kept = [1, 2, 3, 4, 7]
    torch.testing.assert_close(found[kept], plain[kept])
    assert bool(found.isfinite().all())


def test_one_position_alone(subject: probekit.Subject, likelihood: TokenLikelihood) -> None:
    assert likelihood.scores(activations(subject, [7])).shape == (1, 60)
    assert not likelihood.scores(activations(subject, [7]) * torch.nan).any()


@pytest.mark.parametrize("vocabulary", [1, 2, 3])
def test_the_smallest_vocabularies(vocabulary: int) -> None:
    subject = gpt2(vocab_size=vocabulary)
    found = fitted(subject)
    ids = [0, vocabulary - 1, 0]
    scores = found.scores(activations(subject, ids))
    assert scores.shape == (3, vocabulary)
    assert bool(scores.isfinite().all())
    assert ranks(scores, ids) == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_activations_of_another_precision_than_the_models(
    subject: probekit.Subject, likelihood: TokenLikelihood, dtype: torch.dtype
) -> None:
    given = activations(subject, PROMPT)
    assert torch.equal(likelihood.scores(given.to(dtype)).argmax(-1), likelihood.scores(given).argmax(-1))
    assert likelihood.embeddings(given.to(dtype)).shape == (8, 32)


def test_wide_sites_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit_plugins.token_likelihood.ENTRIES", 40)
    subject = gpt2(initializer_range=0.02)
    found = fitted(subject, "logits")
    assert found._projection is not None
    assert found._projection.shape == (60, 40)
    torch.testing.assert_close(found._projection.T @ found._projection, torch.eye(40), rtol=0, atol=1e-5)
    assert ranks(found.scores(activations(subject, PROMPT, "logits")), PROMPT) == [0] * 8


def test_embeddings_are_near_those_of_the_tokens() -> None:
    subject = gpt2(initializer_range=0.02)
    found = fitted(subject)
    expected = found.embeddings(activations(subject, PROMPT))
    apart = torch.cdist(expected, subject.embedding_matrix)
    assert apart.argmin(-1).tolist() == PROMPT


def test_a_fit_is_exact_where_the_world_is_linear() -> None:
    """Activations that are a linear map of embeddings plus little noise: every token first, and Bayes' rule."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(50, 6, generator=generator)
    map_, offset = torch.randn(6, 9, generator=generator), torch.randn(9, generator=generator)
    ids = torch.randint(50, (2000,), generator=generator)
    found = Fit.of(matrix, ids, matrix[ids] @ map_ + offset + 0.1 * torch.randn(2000, 9, generator=generator))
    tokens = torch.arange(50)
    scores = found.log_likelihoods(matrix @ map_ + offset)
    assert torch.equal(scores.argmax(-1), tokens)
    # log p(a | x) − log p(a | y) = (‖a − E a_y‖² − ‖a − E a_x‖²) / 2σ²
    a = matrix[0] @ map_ + offset
    others = (matrix @ map_ + offset - a).square().sum(-1)
    expected = -(others - others[0]) / 2 / 0.1**2
    torch.testing.assert_close(scores[0] - scores[0, 0], expected, rtol=0.15, atol=5.0)
    torch.testing.assert_close(found.embeddings(matrix @ map_ + offset), matrix, rtol=0.05, atol=0.1)


def test_a_site_of_other_positions_is_refused() -> None:
    subject = probekit.Subject(named("blt"))
    context = probekit.Context()
    prompts = [torch.randint(20, 90, (4, 8), generator=torch.Generator().manual_seed(0))]
    with pytest.raises(probekit.AnalysisError, match="no token belongs to one"):
        TokenLikelihood(subject, "block.1", prompts, Batches(context), context)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "mamba", "bert"])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_prompts_to_learn_from_are_of_the_model_and_of_the_length(name: str, length: int) -> None:
    subject = probekit.Subject(named(name))
    first, again, other = (sampled_prompts(subject, length, probekit.Context(seed), "test") for seed in (0, 0, 1))
    assert sum(batch.numel() for batch in first) >= 256
    for batch, same in zip(first, again, strict=True):
        assert torch.equal(batch, same)
        assert batch.shape[1] == max(2, length)
        assert 0 <= int(batch.min()) <= int(batch.max()) < subject.vocabulary
    assert not torch.equal(first[0], other[0])
