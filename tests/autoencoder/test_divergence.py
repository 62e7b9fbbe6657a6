"""Divergences against Monte Carlo and against torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Normal
from torch.distributions import kl_divergence as reference

from probekit_plugins.divergence import kl_divergence, kl_of_logits, kl_of_normals, kl_to_standard_normal

DRAW = torch.Generator().manual_seed(0)


def test_of_discrete_distributions() -> None:
    p, q = (torch.rand(4, 9, generator=DRAW, dtype=torch.double).log_softmax(-1).exp() for _ in range(2))
    found = kl_divergence(p, q)
    assert torch.allclose(found, reference(Categorical(p), Categorical(q)))
    samples = torch.multinomial(p, 200_000, replacement=True, generator=DRAW)
    estimate = (p.gather(1, samples).log() - q.gather(1, samples).log()).mean(1)
    assert torch.allclose(found, estimate, atol=0.02)
    assert torch.allclose(kl_of_logits(p.log() + 3, q.log() - 1), found)


def test_it_is_infinite_without_absolute_continuity_and_zero_entries_count_for_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    assert kl_divergence(p, q).tolist() == pytest.approx([0.0, math.inf, math.log(2)])


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [-0.5, 1.5]])
def test_what_is_no_distribution_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="q is no distribution"):
        kl_divergence(torch.tensor([0.5, 0.5]), torch.tensor(wrong))


def test_of_normal_distributions() -> None:
    mean, log_variance = torch.randn(2, 5, generator=DRAW, dtype=torch.double)
    own = Normal(mean, (log_variance / 2).exp())
    standard = Normal(torch.zeros(5).double(), torch.ones(5).double())
    found = kl_to_standard_normal(mean, log_variance)
    assert torch.allclose(found, reference(own, standard))
    z = mean + (log_variance / 2).exp() * torch.randn(400_000, 5, generator=DRAW, dtype=torch.double)
    assert torch.allclose(found, (own.log_prob(z) - standard.log_prob(z)).mean(0), atol=0.02)
    other_mean, other_variance = torch.randn(5, generator=DRAW).double(), torch.rand(5, generator=DRAW).double() + 0.1
    wide = kl_of_normals(mean, log_variance.exp(), other_mean, other_variance)
    assert torch.allclose(wide, reference(own, Normal(other_mean, other_variance.sqrt())))


def test_a_normal_distribution_without_variance() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert kl_of_normals(one, one, one, zero) == math.inf
    assert kl_of_normals(one, zero, one, zero) == 0
    assert kl_of_normals(zero, zero, one, zero) == math.inf
