"""What each kind of autoencoder must reach where the best possible is known, and the control that must not."""

from __future__ import annotations

import pytest
import torch

import probekit
from probekit_plugins.autoencoder import figures
from probekit_plugins.autoencoder.figures import Principal, posterior, retrieval, squared_errors, two_views
from probekit_plugins.autoencoder.modules import Contrastive, Plain, Variational
from probekit_plugins.trainer import train
from probekit_plugins.training_options import TrainingOptions

CPU = torch.device("cpu")
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def spread(x: torch.Tensor) -> torch.Tensor:
    return squared_errors(x, x.double().mean(0))


def fraction_of_variance(x: torch.Tensor, reconstructed: torch.Tensor) -> float | None:
    return figures.fraction_of_variance(squared_errors(x, reconstructed), spread(x))


def fractions_of_components(examples: torch.Tensor, x: torch.Tensor) -> list[float | None]:
    return figures.fractions(Principal(examples).energies(x), spread(x))


def normal(count: int, variances: torch.Tensor, seed: int) -> torch.Tensor:
    """Normal data whose covariance has these eigenvalues, in a basis that does not depend on the seed."""
    width = len(variances)
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99)))[0]
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return (drawn * variances.sqrt()) @ basis.T


def fit(
    module: Plain | Variational | Contrastive, examples: torch.Tensor, steps: int, rate: float = 2e-3, seed: int = 0
) -> None:
    module.prepare(examples)
    order = torch.randint(len(examples), (steps, 512), generator=torch.Generator().manual_seed(seed))
    options = TrainingOptions(steps=steps, batch=512, learning_rate=rate)
    train(module, module.loss, lambda number: examples[order[number]], options, probekit.Context(seed), "yardstick")


SPECTRUM = torch.logspace(0.9, -2.1, 32)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_autoencoder_of_normal_data_is_as_good_as_pca(seed: int) -> None:
    examples, held = normal(20_000, SPECTRUM, seed), normal(4000, SPECTRUM, seed + 10)
    best = fractions_of_components(examples, held)[5]
    assert best is not None
    torch.manual_seed(seed)
    module = Plain(32, 6, 1, 64)
    fit(module, examples[:, None], 2000, seed=seed)
    with torch.no_grad():
        found = fraction_of_variance(held, module.reconstruct(held))
        codes = module.encode(held)
        shuffled = fraction_of_variance(held, module.decode(codes[torch.randperm(len(codes))]))
    assert best - 0.002 <= (found or 0) <= best + 1e-4
    assert (shuffled or 0) < 0, "codes of other examples explain nothing"


def test_principal_components_are_those_of_the_covariance() -> None:
    examples = normal(5000, SPECTRUM, 3).double()
    fractions = fractions_of_components(examples, examples)
    values = torch.linalg.eigvalsh(torch.cov(examples.T)).flip(0)
    assert fractions == pytest.approx((values.cumsum(0) / values.sum()).tolist(), abs=1e-9)


def test_depth_beats_pca_where_the_data_lie_on_a_curve() -> None:
    place = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)) * 6
    curve = torch.cat([place.sin(), place.cos(), (2 * place).sin()], 1)
    best = fractions_of_components(curve, curve)[1]
    torch.manual_seed(0)
    module = Plain(6, 2, 2, 64)
    fit(module, curve[:, None], 800, 5e-3)
    with torch.no_grad():
        found = fraction_of_variance(curve, module.reconstruct(curve))
    assert (found or 0) > (best or 0) + 0.2


VARIANCES = torch.tensor([8.0, 6, 4, 3, 2, 1.5, *[0.3] * 10, *[0.1] * 16])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_variational_autoencoder_is_probabilistic_pca(seed: int) -> None:
    """Active units: eigenvalues above σ² = 1; divergence: Σ ½ ln(λ_i/σ²) over them. Tipping and Bishop, 1999."""
    examples = normal(20_000, VARIANCES, seed)
    torch.manual_seed(seed)
    module = Variational(32, 12, 1, 64, 1.0, 1.0)
    module.prepare(examples[:, None])
    module.variance = 1 / float(module.scaled.scale) ** 2
    fit(module, examples[:, None], 3000, seed=seed)
    found = posterior(module, examples, CPU)
    expected = float(VARIANCES[VARIANCES > 1].log().sum() / 2)
    assert found.active == 6
    assert float(found.divergence.sum()) == pytest.approx(expected, rel=0.02)
    # q(z | x) of all x together is what z was to be drawn from.
    assert float(found.aggregate.sum()) < 0.02


def test_a_variational_autoencoder_that_may_decode_anything_collapses() -> None:
    """The control: σ² = 10⁹, so that the divergence alone counts."""
    examples = normal(20_000, VARIANCES, 0)
    torch.manual_seed(0)
    module = Variational(32, 12, 1, 64, 1e9, 1.0)
    fit(module, examples[:, None], 1000)
    found = posterior(module, examples, CPU)
    assert found.active == 0
    assert float(found.divergence.sum()) < 0.05
    with torch.no_grad():
        assert (fraction_of_variance(examples, module.reconstruct(examples)) or 0) < 0.05


def pairs(count: int, seed: int) -> torch.Tensor:
    """Two views `[count, 2, 32]` that share 8 dimensions under 24 that are three times as strong and their own."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 8, generator=generator)
    bases = torch.linalg.qr(torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(99)))[0]
    views = [
        torch.cat(
            [
                shared + 0.2 * torch.randn(count, 8, generator=generator),
                3 * torch.randn(count, 24, generator=generator),
            ],
            1,
        )
        @ basis.T
        for basis in bases
    ]
    return torch.stack(views, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_contrastive_one_finds_what_two_views_share(seed: int) -> None:
    examples, held = pairs(20_000, seed), pairs(512, seed + 10)
    torch.manual_seed(seed)
    module = Contrastive(32, 8, 1, 64, 2, 0.1, 0.2)
    module.prepare(examples)
    before = retrieval(*two_views(module, held, 0))
    fit(module, examples, 700, 5e-3, seed=seed)
    after = retrieval(*two_views(module, held, 0))
    assert before.top1 < 0.02, "the control: as it was drawn"
    assert after.top1 >= 0.91
    assert after.alignment < before.alignment / 3


def test_labels_bring_examples_of_one_label_together() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (4000,), generator=generator)
    x = 3 * torch.randn(4000, 16, generator=generator)
    x[:, :2] = torch.stack([(labels % 2) * 2.0 - 1, (labels // 2) * 2.0 - 1], 1) + 0.15 * x[:, :2]
    torch.manual_seed(0)
    plain, told = Contrastive(16, 8, 2, 64, 1, 0.1, 0.2), Contrastive(16, 8, 2, 64, 1, 0.1, 0.2)
    order = torch.randint(3000, (300, 256), generator=generator)
    options = TrainingOptions(steps=300, batch=256)
    for module, loss in (
        (plain, lambda rows, step: plain.loss(x[rows][:, None], step)),
        (told, lambda rows, step: told.loss(x[rows][:, None], step, labels[rows])),
    ):
        module.prepare(x[:3000, None])
        train(module, loss, lambda number: order[number], options, probekit.Context(), "labels")

    def nearest_has_the_same_label(module: Contrastive) -> float:
        with torch.no_grad():
            codes = module.encode(x[3000:])
        similarity = (codes @ codes.T).fill_diagonal_(-2)
        return float((labels[3000:][similarity.argmax(1)] == labels[3000:]).double().mean())

    assert nearest_has_the_same_label(told) > 0.75
    assert nearest_has_the_same_label(plain) < 0.6
