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


def fraction_of_variance(x: torch.Tensor, reconstructed: torch.Tensor) -> float | None:
    """`FVE = 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²` of `[n, d]`: 1 is all, 0 no better than the mean. None if nothing varies."""
    x = x.double()
    total = (x - x.mean(0)).square().sum()
    return None if total == 0 else float(1 - (x - reconstructed.double()).square().sum() / total)


def root_mean_square(x: torch.Tensor, reconstructed: torch.Tensor) -> float:
    """Of `x − x̂` in an entry."""
    return float((x.double() - reconstructed.double()).square().mean().sqrt())


class Principal:
    """Principal components of training examples `[n, d]`: the best linear code of each width."""

    def __init__(self, examples: torch.Tensor) -> None:
        x = examples.double()
        self.mean = x.mean(0)
        centred = x - self.mean
        self.components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)

    def fractions(self, x: torch.Tensor) -> list[float | None]:
        """FVE on other examples with 1, 2, …, d components."""
        x = x.double()
        total = float((x - x.mean(0)).square().sum())
        if total == 0:
            return [None] * x.shape[1]
        centred = x - self.mean
        gained = (centred @ self.components).square().sum(0).cumsum(0)
        left = centred.square().sum() - gained
        return [1 - float(value) / total for value in left]


@dataclass(frozen=True)
class Sparsity:
    """Of a sparse code over many examples: mean number of active features, and how often each is active, `[q]`."""

    l0: float
    density: torch.Tensor

    @property
    def dead(self) -> float:
        """Share of the features that are never active."""
        return float((self.density == 0).double().mean())


def sparsity(encode: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, device: torch.device) -> Sparsity:
    """Over all of these examples."""
    counts, total = torch.zeros(()), 0
    with torch.no_grad():
        for part in x.split(AT_ONCE):
            counts = counts + (encode(part.to(device)) != 0).double().sum(0).cpu()
            total += len(part)
    return Sparsity(float(counts.sum()) / total, counts / total)


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
    """How well a view tells its example's other view from those of `among` others: `top1`; and where codes of norm 1
    lie: `alignment = E‖a − b‖²` of two views, `uniformity = log E e^{−2‖a − a'‖²}` of two examples.
    """

    top1: float
    among: int
    alignment: float
    uniformity: float


def retrieval(first: torch.Tensor, second: torch.Tensor) -> Retrieval:
    """Of codes `[n, q]` of two views of the same examples. Wang and Isola, 2020, arXiv 2005.10242."""
    first, second = first[:RETRIEVED].double(), second[:RETRIEVED].double()
    best = (first @ second.T).argmax(1)
    right = (best == torch.arange(len(best))).double().mean()
    apart = torch.pdist(first).square() if len(first) > 1 else torch.zeros(1, dtype=torch.double)
    return Retrieval(
        float(right),
        len(first),
        float((first - second).square().sum(-1).mean()),
        float(apart.mul(-2).exp().mean().log()),
    )


def two_views(module: Contrastive, examples: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of both views of examples `[n, views, d]`; of one view, two are made by dropout as in the training."""
    with torch.no_grad():
        if examples.shape[1] == 2:
            return module.encode(examples[:, 0], 0), module.encode(examples[:, 1], 1)
        generator = torch.Generator().manual_seed(seed)
        masks = torch.rand(2, *examples[:, 0].shape, generator=generator) >= module.dropout
        first, second = (module.dropped(examples[:, 0], mask) for mask in masks)
        return first, second
