"""The autoencoder: `q(z | x) = N(μ, σ²)` from the encoder's pooled states, `p(x | z)` by the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from probekit_plugins.divergence import kl_to_standard_normal
from probekit_plugins.text_vae.reading import Batch, Reader, without

if TYPE_CHECKING:
    from probekit_plugins.corpus import Texts
    from probekit_plugins.text_vae.decoders import Decoder
    from probekit_plugins.text_vae.encoders import Encoder
    from probekit_plugins.text_vae.recipe import Recipe
    from probekit_plugins.trainer import Step

# While β is zero nothing keeps σ from growing beyond all numbers: |log σ²| stays below this.
BOUND = 12.0


class Language(nn.Module):
    """A language model of texts, with or without z: `nll(texts, z)`."""

    def __init__(self, decoder: nn.Module, reader: Reader) -> None:
        super().__init__()
        self.decoder, self.reader = decoder, reader

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def nll(self, texts: Texts, z: torch.Tensor | None = None) -> torch.Tensor:
        """`−Σ_t log p(x_t | x_{<t}, z)` over a text's tokens and what ends it, in nats, `[n]`."""
        framed = self.reader.framed(texts)
        before = len(self.reader.start)
        ids = framed.ids.to(self.device)
        logits = self.decoder(ids[:, :-1], z)[:, before - 1 :]
        targets, mask = ids[:, before:], framed.mask[:, before:].to(self.device)
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return (losses * mask).sum(1)

    def loss(self, batch: Batch, step: Step) -> torch.Tensor:
        """The mean over texts."""
        return self.nll(batch.decoder).mean()


class Vae(Language):
    """`loss = −log p(x | z) + β Σ_i max(λ, KL_i)`, summed over tokens, the mean over texts; z = μ + σ ∘ ε.

    λ are the free bits of a dimension of one text (Kingma et al., 2016, as Optimus has them), β follows the recipe.
    """

    def __init__(
        self, encoder: Encoder, decoder: Decoder, readers: tuple[Reader, Reader], recipe: Recipe, device: torch.device
    ) -> None:
        super().__init__(decoder, readers[1])
        self.encoder, self.encoder_reader, self.recipe = encoder, readers[0], recipe
        self.to_posterior = nn.Linear(encoder.width, 2 * recipe.latent, bias=False, device=device)

    def posterior(self, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
        """μ and log σ², `[n, P]` each; log σ² is bounded smoothly, and as it is near zero."""
        both = self.to_posterior(self.encoder(self.encoder_reader.framed(texts)))
        mean, log_variance = both.chunk(2, -1)
        return mean, BOUND * (log_variance / BOUND).tanh()

    def pretraining_loss(self, batch: Batch, step: Step) -> torch.Tensor:
        """Phase 1: `−log p(x | z)` alone, with tokens of what the encoder reads deleted where the recipe says so."""
        texts = batch.encoder
        if self.recipe.deletion:
            texts = without(texts, self.recipe.deletion, step.generator)
        return self._negative_elbo(texts, batch.decoder, 0.0, step)

    def loss(self, batch: Batch, step: Step) -> torch.Tensor:
        """Phase 2."""
        return self._negative_elbo(batch.encoder, batch.decoder, self.recipe.beta_at(step.share), step)

    def _negative_elbo(self, read: Texts, written: Texts, beta: float, step: Step) -> torch.Tensor:
        mean, log_variance = self.posterior(read)
        noise = torch.randn(mean.shape, generator=step.generator).to(mean)
        z = mean + (log_variance / 2).exp() * noise
        divergence = kl_to_standard_normal(mean, log_variance).clamp(min=self.recipe.free_bits).sum(1)
        return (self.nll(written, z) + beta * divergence).mean()

    def own_decoder(self) -> dict[str, torch.Tensor]:
        """A copy of the decoder's weights, but for those that it shares with the encoder."""
        shared = {id(parameter) for parameter in self.encoder.parameters()}
        found = self.decoder.named_parameters()
        return {name: each.detach().clone() for name, each in found if id(each) not in shared}

    def reset_decoder(self, weights: dict[str, torch.Tensor]) -> None:
        """Give the decoder these weights again."""
        with torch.no_grad():
            for name, each in weights.items():
                self.decoder.get_parameter(name).copy_(each)
