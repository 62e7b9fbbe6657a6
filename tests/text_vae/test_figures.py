"""Figures of text autoencoders where they are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from probekit_plugins.corpus import Texts
from probekit_plugins.text_vae import figures
from probekit_plugins.text_vae.figures import Interpolation, Latents, importance, information, log_likelihood, use
from probekit_plugins.text_vae.reading import Batch

NOISE = 0.5


class Linear:
    """x = z + ε in one dimension, ε ~ N(0, NOISE²): texts are rows of a table of x; all is known of it."""

    device = torch.device("cpu")

    def __init__(self, x: torch.Tensor, uses: float = 1.0) -> None:
        self.x, self.uses = x, uses

    def nll(self, texts: Texts, z: torch.Tensor) -> torch.Tensor:
        x = self.x[texts.ids[:, 0]]
        apart = (x - self.uses * z[:, 0].double()).square() / NOISE**2
        return (apart + math.log(2 * math.pi * NOISE**2)) / 2


def texts(count: int) -> Batch:
    rows = Texts.of([[row] for row in range(count)])
    return Batch(rows, rows)


def estimated(model: Any, found: Latents, samples: int, seed: int = 0) -> torch.Tensor:
    return log_likelihood(importance(model, texts(40), found, samples, generator(seed), lambda: None))


def mutual_information(found: Latents) -> float:
    return float(information(found, generator()).mean())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(40, generator=generator(5), dtype=torch.double) * math.sqrt(1 + NOISE**2)
TRUE = -(X.square() / (1 + NOISE**2) + math.log(2 * math.pi * (1 + NOISE**2))) / 2


def posterior(widened: float = 0.0) -> Latents:
    """The true `q(z | x)`, or a wider one."""
    variance = torch.full((40, 1), NOISE**2 / (1 + NOISE**2), dtype=torch.double)
    return Latents(X[:, None] / (1 + NOISE**2), variance.log() + widened)


def test_with_the_true_posterior_one_sample_gives_the_likelihood() -> None:
    model: Any = Linear(X)
    found = estimated(model, posterior(), 1)
    assert torch.allclose(found, TRUE, atol=1e-5)


def test_with_another_posterior_many_samples_do_and_one_is_a_lower_bound() -> None:
    model: Any = Linear(X)
    many = estimated(model, posterior(1.0), 4000)
    assert torch.allclose(many, TRUE, atol=0.1)
    ones = [estimated(model, posterior(1.0), 1, seed) for seed in range(200)]
    assert float((torch.stack(ones).mean(0) - TRUE).mean()) < -0.05


def test_mutual_information_is_nothing_where_all_posteriors_are_one_and_its_ceiling_where_none_overlap() -> None:
    same = Latents(torch.zeros(50, 3, dtype=torch.double), torch.zeros(50, 3, dtype=torch.double))
    assert mutual_information(same) == pytest.approx(0, abs=1e-12)
    apart = Latents(100.0 * torch.arange(50, dtype=torch.double)[:, None], torch.zeros(50, 1, dtype=torch.double))
    assert mutual_information(apart) == pytest.approx(math.log(50), abs=1e-9)


def test_mutual_information_of_normal_codes_is_that_of_their_channel() -> None:
    means = torch.randn(4000, 1, generator=generator(1), dtype=torch.double)
    found = mutual_information(Latents(means, torch.full_like(means, math.log(NOISE**2))))
    assert found == pytest.approx(math.log(1 + 1 / NOISE**2) / 2, abs=0.03)


def test_delta_rec_is_what_the_own_z_is_worth_and_nothing_where_z_is_not_read() -> None:
    model: Any = Linear(X)
    found = use(model, texts(40), posterior(), generator())
    assert found.delta > 1
    assert found.delta > 5 * found.error
    deaf: Any = Linear(X, uses=0.0)
    found = use(deaf, texts(40), posterior(), generator())
    assert (found.delta, found.error) == (0, 0)


def test_no_text_is_given_its_own_z_as_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Tensor] = []

    def recorded(model: object, batch: Batch, z: torch.Tensor) -> torch.Tensor:
        given.append(z)
        return z[:, 0]

    monkeypatch.setattr(figures, "nll", recorded)
    model: Any = Linear(X)
    use(model, texts(40), posterior(), generator())
    own, other, _ = given[:3]
    assert bool((own != other).all())
    assert sorted(own[:, 0].tolist()) == sorted(other[:, 0].tolist())


def test_an_interpolation_that_goes_nowhere_is_monotone_and_its_gap_tells() -> None:
    flat, way = Interpolation(torch.zeros(3, 5)), Interpolation(torch.tensor([[4.0, 2, 0, -2, -4]]))
    assert (flat.monotone, flat.gap) == (1, 0)
    assert (way.monotone, way.gap) == (1, 8)
    assert Interpolation(torch.tensor([[4.0, 5, -4]])).monotone == 0


def test_the_preference_goes_from_one_text_to_the_other() -> None:
    model: Any = Linear(X)
    found = figures.interpolation(model, texts(40), posterior(), 5)
    assert found.preference.shape == (20, 5)
    assert bool((found.preference[:, 0] >= found.preference[:, -1]).all())
