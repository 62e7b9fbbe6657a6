"""Figures of autoencoders on examples that they were not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit_plugins.divergence import kl_of_normals, kl_to_standard_normal

if TYPE_CHECKING:
    from collections.abc import Callable

    from probekit_plugins.autoencoder.modules import Contrastive, Variational

# Examples that pass through an autoencoder at once.
AT_ONCE = 4096
# Variance of its mean from which on a dimension of a variational code counts as active (Burda et al., 2016).
ACTIVE = 0.01
# Examples that are told apart from one another.
RETRIEVED = 512


def in_parts(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A function of many rows, some at a time, on a device; the outcome is on the CPU."""
    with torch.no_grad():
        return torch.cat([function(part.to(device)).cpu() for part in x.split(AT_ONCE)])


def squared_errors(x: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """`‖x − x̂‖²` of each example, of `[n, d]`: `[n]`, float64. With the mean for x̂ it is how far each is from it."""
    return (x.double() - reconstructed.double()).square().sum(-1)


def fraction_of_variance(errors: torch.Tensor, spread: torch.Tensor) -> float | None:
    """`FVE = 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²` of `[n]` each: 1 is all, 0 no better than the mean. None if nothing varies."""
    total = spread.sum()
    return None if total == 0 else float(1 - errors.sum() / total)


def root_mean_square(errors: torch.Tensor, width: int) -> float:
    """Of `x − x̂` in an entry, of squared errors `[n]` of examples of this width."""
    return float((errors.mean() / width).sqrt())


class Principal:
    """Principal components of training examples `[n, d]`: the best linear code of each width."""

    def __init__(self, examples: torch.Tensor) -> None:
        x = examples.double()
        self.mean = x.mean(0)
        centred = x - self.mean
        self.components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)

    def energies(self, x: torch.Tensor) -> torch.Tensor:
        """Of other examples: their sum of squares about the mean of those, and of that what each component has, `[1 +
        d]`.
        """
        centred = x.double() - self.mean
        return torch.cat([centred.square().sum()[None], (centred @ self.components).square().sum(0)])


def fractions(energies: torch.Tensor, spread: torch.Tensor) -> list[float | None]:
    """FVE with 1, 2, …, d principal components, of what these have, and of `‖x − x̄‖²` `[n]`."""
    total, gained = float(spread.sum()), energies[1:].cumsum(0)
    return [None if total == 0 else 1 - float(value) / total for value in energies[0] - gained]


def times_active(encode: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """At how many of these examples each feature of a sparse code is active, `[q]`."""
    with torch.no_grad():
        counts = [(encode(part.to(device)) != 0).sum(0).cpu() for part in x.split(AT_ONCE)]
    return torch.stack(counts).sum(0)


@dataclass(frozen=True)
class Posterior:
    """Of a variational code, each `[q]`: `E_x KL(q(z_i | x) ‖ N(0, 1))` in nats, `Var_x(μ_i)`, and mean and variance of
    the aggregate posterior `E_x q(z_i | x)`.
    """

    divergence: torch.Tensor
    variance_of_means: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    @property
    def active(self) -> int:
        """Dimensions with `Var_x(μ_i) ≥ 0.01`."""
        return int((self.variance_of_means >= ACTIVE).sum())

    @property
    def aggregate(self) -> torch.Tensor:
        """KL of the aggregate posterior from N(0, 1), as if it were normal itself, `[q]`."""
        ones = torch.ones_like(self.mean)
        return kl_of_normals(self.mean, self.variance, torch.zeros_like(self.mean), ones)


def posterior(module: Variational, x: torch.Tensor, device: torch.device) -> Posterior:
    """Over all of these examples."""
    both = in_parts(lambda part: torch.cat(module.posterior(part), -1), x, device).double()
    mean, log_variance = both.chunk(2, -1)
    spread = mean.var(0, correction=0)
    return Posterior(
        kl_to_standard_normal(mean, log_variance).mean(0), spread, mean.mean(0), log_variance.exp().mean(0) + spread
    )


@dataclass(frozen=True)
class Retrieval:
    """Of codes of two views of the same examples, a and b, each `[n]`: the example whose b is the nearest to a; the
    distance `‖a − b‖²`; and the mean of `e^{−2‖a − a'‖²}` over the other examples a', 1 where there are none.
    """

    nearest: torch.Tensor
    distances: torch.Tensor
    potentials: torch.Tensor

    @property
    def top1(self) -> float:
        """How often a view tells its example's other view from those of the others."""
        return top1(self.nearest)

    @property
    def alignment(self) -> float:
        """`E‖a − b‖²` of codes of norm 1."""
        return float(self.distances.mean())

    @property
    def uniformity(self) -> float:
        """`log E e^{−2‖a − a'‖²}` of two examples."""
        return float(self.potentials.mean().log())


def top1(nearest: torch.Tensor) -> float:
    """How often the example that is the nearest, `[n]`, is the right one."""
    return float((nearest == torch.arange(len(nearest))).double().mean())


def retrieval(first: torch.Tensor, second: torch.Tensor) -> Retrieval:
    """Of codes `[n, q]` of two views of the same examples. Wang and Isola, 2020, arXiv 2005.10242."""
    first, second = first[:RETRIEVED].double(), second[:RETRIEVED].double()
    others = max(1, len(first) - 1)
    near = torch.cdist(first, first, compute_mode="donot_use_mm_for_euclid_dist").square().mul(-2).exp()
    potentials = (near.sum(1) - near.diagonal()) / others if len(first) > 1 else torch.ones_like(near[0])
    return Retrieval((first @ second.T).argmax(1), (first - second).square().sum(-1), potentials)


def two_views(module: Contrastive, examples: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of both views of examples `[n, views, d]`; of one view, two are made by dropout as in the training."""
    with torch.no_grad():
        if examples.shape[1] == 2:
            return module.encode(examples[:, 0], 0), module.encode(examples[:, 1], 1)
        generator = torch.Generator().manual_seed(seed)
        masks = torch.rand(2, *examples[:, 0].shape, generator=generator) >= module.dropout
        first, second = (module.dropped(examples[:, 0], mask) for mask in masks)
        return first, second
