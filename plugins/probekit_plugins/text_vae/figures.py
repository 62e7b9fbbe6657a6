"""Figures of a text autoencoder on texts that it was not trained on.

None but ΔRec and the interpolation's end-point gap prove that z is used: a collapsed autoencoder has the better PPL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from probekit_plugins.continued import continued, until_end
from probekit_plugins.divergence import kl_to_standard_normal
from probekit_plugins.text_vae.reading import Batch
from probekit_plugins.text_vae.vae import Language, Vae

# Texts that pass through at once.
AT_ONCE = 64
# Entries of a table of texts by texts by dimensions that are held at once.
ENTRIES = 1 << 25
# Variance of its mean from which on a dimension counts as active (Burda et al., 2016).
ACTIVE = 0.01
# Draws of z, and of another text's, in ΔRec.
DRAWS = 3
# Pairs of texts that interpolations are measured on, texts that are written again, samples of q(z) for each text.
PAIRS, WRITTEN, AGGREGATE = 64, 200, 4


@dataclass(frozen=True)
class Latents:
    """`q(z | x)` of texts, float64 on the CPU: means and log variances `[n, P]`."""

    mean: torch.Tensor
    log_variance: torch.Tensor

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """`z = μ + σ ∘ ε`, one for each text."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.double)
        return self.mean + (self.log_variance / 2).exp() * noise

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """`log q(z_i | x_i)`, `[n]`."""
        return _log_normal(z, self.mean, self.log_variance)

    @property
    def divergence(self) -> torch.Tensor:
        """`KL(q(z_i | x) ‖ N(0, 1))` in nats, `[n, P]`."""
        return kl_to_standard_normal(self.mean, self.log_variance)

    @property
    def variance(self) -> torch.Tensor:
        """`Var_x(μ_i)`, `[P]`."""
        return self.mean.var(0, correction=0)


def latents(vae: Vae, texts: Batch) -> Latents:
    """Of all of them."""
    with torch.no_grad():
        parts = [torch.cat(vae.posterior(part.encoder), -1).double().cpu() for part in _parts(texts)]
    mean, log_variance = torch.cat(parts).chunk(2, -1)
    return Latents(mean, log_variance)


def information(found: Latents, generator: torch.Generator) -> torch.Tensor:
    """`log q(z | x) − log q(z)` in nats, of a few samples of z for each text, `[samples, n]`, float64; `q(z)` is the
    mixture of all N texts'.

    Its mean is `MI = E_x KL(q(z | x) ‖ p) − KL(q(z) ‖ p)`, at most `ln N`. Hoffman and Johnson, 2016.
    """
    rows = []
    size = max(1, min(AT_ONCE, ENTRIES // found.mean.numel()))
    for _ in range(AGGREGATE):
        z, parts = found.sample(generator), []
        for part, own in zip(z.split(size), found.log_density(z).split(size), strict=True):
            every = _log_normal(part[:, None], found.mean[None], found.log_variance[None])
            parts.append(own - every.logsumexp(1) + math.log(len(found.mean)))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def nll(language: Language, texts: Batch, z: torch.Tensor | None = None) -> torch.Tensor:
    """`−log p(x | z)` of each text, in nats, `[n]`, float64 on the CPU."""
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            given = None if z is None else z[rows].float().to(language.device)
            found.append(language.nll(texts.decoder[rows], given).double().cpu())
    return torch.cat(found)


def importance(
    vae: Vae, texts: Batch, found: Latents, samples: int, generator: torch.Generator, step: Callable[[], None]
) -> torch.Tensor:
    """`log p(x | z_s) + log p(z_s) − log q(z_s | x)`, z_s from q, in nats, `[samples, n]`."""
    weights = []
    for _ in range(samples):
        z = found.sample(generator)
        prior = _log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        weights.append(prior - found.log_density(z) - nll(vae, texts, z))
        step()
    return torch.stack(weights)


def log_likelihood(weights: torch.Tensor) -> torch.Tensor:
    """`log p̂(x) = logsumexp_s[log p(x | z_s) + log p(z_s) − log q(z_s | x)] − log S` in nats, `[n]`, of `[S, n]`.

    A lower bound in the mean, the tighter the larger S (Burda et al., 2016).
    """
    return weights.logsumexp(0) - math.log(len(weights))


@dataclass(frozen=True)
class Use:
    """Whether z is used, in nats of each text, `[3, draws, n]`: its NLL given its own z, that of another text, and one
    from the prior.
    """

    nll: torch.Tensor

    @property
    def own(self) -> torch.Tensor:
        """Given its own z, the mean over draws, `[n]`."""
        return self.nll[0].mean(0)

    @property
    def _costs(self) -> torch.Tensor:
        return self.nll[1].mean(0) - self.own

    @property
    def delta(self) -> float:
        """`ΔRec = NLL(x | z of another) − NLL(x | z)`, the mean over texts."""
        return float(self._costs.mean())

    @property
    def error(self) -> float:
        """Standard error of that mean."""
        return float(self._costs.std() / len(self.own) ** 0.5)

    @property
    def of_prior(self) -> float:
        """`NLL(x | z of the prior) − NLL(x | z)`, the mean over texts."""
        return float((self.nll[2].mean(0) - self.own).mean())


def use(vae: Vae, texts: Batch, found: Latents, generator: torch.Generator) -> Use:
    """Each z drawn from q; the other text is never the same one."""
    rows: list[list[torch.Tensor]] = [[], [], []]
    for _ in range(DRAWS):
        z = found.sample(generator)
        order = torch.randperm(len(z), generator=generator)
        other = torch.empty_like(z)
        other[order] = z[order.roll(1)]
        prior = torch.randn(z.shape, generator=generator, dtype=torch.double)
        for row, each in zip(rows, (z, other, prior), strict=True):
            row.append(nll(vae, texts, each))
    return Use(torch.stack([torch.stack(row) for row in rows]))


@dataclass(frozen=True)
class Interpolation:
    """Between pairs of texts: `preference`, `[pairs, points]`, is `log p(x₁ | z_t) − log p(x₂ | z_t)` in nats."""

    preference: torch.Tensor

    @property
    def gap(self) -> float:
        """How far the preference goes from one end to the other: nothing where z is not used, however monotone."""
        return float((self.preference[:, 0] - self.preference[:, -1]).mean())

    @property
    def monotone(self) -> float:
        """Share of the pairs whose preference never rises on the way."""
        return float((self.preference.diff(dim=1) <= 0).all(1).double().mean())


def interpolation(vae: Vae, texts: Batch, found: Latents, points: int) -> Interpolation:
    """`z_t = z₁ + t (z₂ − z₁)` between the means of neighbouring texts, two by two."""
    pairs = min(PAIRS, len(texts) // 2)
    first, second = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    z1, z2 = found.mean[first], found.mean[second]
    columns = []
    for t in torch.linspace(0, 1, points, dtype=torch.double):
        z = z1 + t * (z2 - z1)
        columns.append(nll(vae, texts[second], z) - nll(vae, texts[first], z))
    return Interpolation(torch.stack(columns, 1))


def written(vae: Language, z: torch.Tensor, length: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """What the decoder writes, greedily or by sampling, given each z: the tokens between start and end."""
    end = vae.reader.end[0] if vae.reader.end else None
    start = torch.tensor(vae.reader.start, dtype=torch.long, device=vae.device)
    found: list[list[int]] = []
    for part in z.split(AT_ONCE):
        given = part.float().to(vae.device)
        first = start.expand(len(part), -1)

        def following(ids: torch.Tensor, given: torch.Tensor = given) -> torch.Tensor:
            logits: torch.Tensor = vae.decoder(ids, given)
            return logits[:, -1]

        ids = continued(following, first, length, end, generator)
        found += [until_end(row, end) for row in ids[:, len(start) :].tolist()]
    return found


def again(vae: Vae, texts: Batch, found: Latents) -> list[list[int]]:
    """What greedy decoding of μ gives of texts.

    Where nothing ends a text, only its own length is kept.
    """
    chosen = texts[: min(WRITTEN, len(texts))]
    length = chosen.decoder.ids.shape[1] + len(vae.reader.end)
    rows = written(vae, found.mean[: len(chosen)], length)
    if vae.reader.end:
        return rows
    return [each[: len(row)] for each, row in zip(rows, chosen.decoder.rows(), strict=True)]


def _parts(texts: Batch) -> list[Batch]:
    return [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]


def _log_normal(z: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """`log N(z; μ, σ²)`, summed over the last axis."""
    terms = (z - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)
    return -terms.sum(-1) / 2
