"""Autoencoders of activations: what turns `x` in `R^d` into a code of width q, and a code into `x̂`.

Each has its own loss. Activations come as they are: `Scale` is part of the module, so that what is saved takes them as
they are as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from probekit_plugins.divergence import kl_to_standard_normal

if TYPE_CHECKING:
    from probekit_plugins.trainer import Step


class Scale(nn.Module):
    """`(x − μ) / s` and back: the mean of the training examples, and the root of their mean variance in an entry."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, examples: torch.Tensor) -> None:
        """Take both from examples `[n, d]`. One in which nothing varies is left at its scale."""
        mean = examples.double().mean(0)
        scale = (examples.double() - mean).square().mean().sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(scale if scale > 0 else torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = (x - self.mean) / self.scale
        return scaled

    def back(self, scaled: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        return scaled * self.scale + self.mean


class Path(nn.Module):
    """Two layers beside a linear map, `A x + B GELU(C x)`, or the linear map alone. The second term begins at zero."""

    def __init__(self, inputs: int, outputs: int, count: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.bent: nn.Module | None = None
        if count == 2:
            last = nn.Linear(hidden, outputs)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.bent = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(x)
        return found if self.bent is None else found + self.bent(x)


class Autoencoder(nn.Module, ABC):
    """`encode`, `decode`, and a loss of a batch of examples `[b, views, d]`. `width` is d."""

    width: int

    @abstractmethod
    def prepare(self, examples: torch.Tensor) -> None:
        """Look at the training examples, `[n, views, d]`, once before the training."""

    @abstractmethod
    def loss(self, examples: torch.Tensor, step: Step) -> torch.Tensor:
        """What is minimised, the mean over a batch."""

    @abstractmethod
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """`[…, d] → […, q]`."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """`[…, q] → […, d]`."""

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """`x̂ = Dec(Enc(x))`."""
        return self.decode(self.encode(x))


class Plain(Autoencoder):
    """`min ‖Dec(Enc(x)) − x‖²`, `q ≪ d`; encoder and decoder linear or of two layers."""

    def __init__(self, width: int, code: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.scaled = Scale(width)
        self.encoder = Path(width, code, depth, hidden)
        self.decoder = Path(code, width, depth, hidden)

    def prepare(self, examples: torch.Tensor) -> None:
        self.scaled.fit(examples.flatten(0, 1))

    def loss(self, examples: torch.Tensor, step: Step) -> torch.Tensor:
        x = self.scaled(examples.flatten(0, 1))
        loss: torch.Tensor = (self.decoder(self.encoder(x)) - x).square().sum(-1).mean() / x.shape[-1]
        return loss

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.encoder(self.scaled(x))
        return found

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.scaled.back(self.decoder(codes))


class Variational(Autoencoder):
    """`min ‖x − x̂‖² / 2σ² + β KL(N(μ, e^lv) ‖ N(0, I))`, `x̂ = Dec(μ + e^{lv/2} ε)`.

    σ² is that of an entry of the activations, scaled so that their mean variance is 1. Codes are means.
    """

    def __init__(self, width: int, code: int, depth: int, hidden: int, variance: float, beta: float) -> None:
        super().__init__()
        self.width = width
        self.scaled = Scale(width)
        self.encoder = Path(width, 2 * code, depth, hidden)
        self.decoder = Path(code, width, depth, hidden)
        self.variance, self.beta = variance, beta

    def prepare(self, examples: torch.Tensor) -> None:
        self.scaled.fit(examples.flatten(0, 1))

    def loss(self, examples: torch.Tensor, step: Step) -> torch.Tensor:
        x = self.scaled(examples.flatten(0, 1))
        mean, log_variance = self.encoder(x).chunk(2, -1)
        noise = torch.randn(mean.shape, generator=step.generator).to(mean)
        decoded = self.decoder(mean + (log_variance / 2).exp() * noise)
        distance = (decoded - x).square().sum(-1) / (2 * self.variance)
        divergence = kl_to_standard_normal(mean, log_variance).sum(-1)
        # In units of the plain loss, so that one learning rate suits any σ².
        loss: torch.Tensor = (distance + self.beta * divergence).mean() * min(1.0, 2 * self.variance) / x.shape[-1]
        return loss

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of `q(z | x)`, `[…, q]` each."""
        mean, log_variance = self.encoder(self.scaled(x)).chunk(2, -1)
        return mean, log_variance

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.posterior(x)[0]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.scaled.back(self.decoder(codes))


class Contrastive(nn.Module):
    """`InfoNCE = −log[e^{sim(z, z⁺)/τ} / Σ_j e^{sim(z, z_j)/τ}]` of the two views of each example, both ways.

    `sim` is the cosine. Two views have an encoder each; of one view, two are made by dropout. With labels, every other
    example of the same label is a positive one as well (Khosla et al., 2020).
    """

    def __init__(
        self, width: int, code: int, depth: int, hidden: int, views: int, temperature: float, dropout: float
    ) -> None:
        super().__init__()
        self.scaled = nn.ModuleList(Scale(width) for _ in range(views))
        self.encoders = nn.ModuleList(Path(width, code, depth, hidden) for _ in range(views))
        self.temperature, self.dropout = temperature, dropout

    def prepare(self, examples: torch.Tensor) -> None:
        """Look at the training examples, `[n, views, d]`, once before the training."""
        for view, scaled in enumerate(self.scaled):
            assert isinstance(scaled, Scale)
            scaled.fit(examples[:, view])

    def loss(self, examples: torch.Tensor, step: Step, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Mean InfoNCE of `[b, views, d]`, the other examples of the batch being the negative ones."""
        if examples.shape[1] == 1:
            masks = torch.rand(2, *examples[:, 0].shape, generator=step.generator) >= self.dropout
            pair = [self.dropped(examples[:, 0], mask) for mask in masks]
        else:
            pair = [self.encode(examples[:, view], view) for view in range(2)]
        similarity = pair[0] @ pair[1].T / self.temperature
        if labels is None:
            own = torch.arange(len(similarity), device=similarity.device)
            return (functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)) / 2
        same = (labels[:, None] == labels[None]).to(similarity)
        same = same / same.sum(1, keepdim=True)
        both = functional.cross_entropy(similarity, same) + functional.cross_entropy(similarity.T, same)
        return both / 2

    def dropped(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The code of an activation of which only the entries of a mask are left."""
        scaled = self.scaled[0](x)
        return self._unit(0, scaled * mask.to(scaled) / (1 - self.dropout))

    def encode(self, x: torch.Tensor, view: int = 0) -> torch.Tensor:
        """`[…, d] → […, q]`, of norm 1."""
        return self._unit(view, self.scaled[view](x))

    def _unit(self, view: int, scaled: torch.Tensor) -> torch.Tensor:
        return functional.normalize(self.encoders[view](scaled), dim=-1)
