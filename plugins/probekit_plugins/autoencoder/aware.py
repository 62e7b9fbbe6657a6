"""Which tokens of a prompt an autoencoder's reconstruction still tells from all others that are tried.

Whoever knows the autoencoder passes candidates through it as well: token → x̂(O(x)) is one more layer map, and x̂ of the
right tokens is the given one but for arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit_plugins.autoencoder.through import MEASURED, Reconstruct, replaced
from probekit_plugins.exact_inverter.search import COMPARED, ROWS, distance
from probekit_plugins.exact_inverter.tolerance import LEAST
from probekit_plugins.precision import at_least_single
from probekit_plugins.token_likelihood import TokenLikelihood

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.exact_inverter.recovery import Inverter

# How much larger each next batch of candidates is than the first, which is as large as that of noisy activations.
GROWTH = 4
# Beginnings of a prompt that are followed, where several fit.
FOLLOWED = 8
# The reconstruction is as exact as so many of the samples say, times this: that a code jumps now and then, where a
# feature is switched on by rounding, is no reason to take all tokens for the same.
QUANTILE, SAFETY = 0.99, 2.0
# The same tokens in the same shape give the same x̂ within this; worth a look where errors are so many times as large.
EXACT, COARSE = 2 * LEAST, 8


@dataclass(frozen=True)
class Aware:
    """One that knows the autoencoder, at a site.

    `likelihood` says which tokens to try first. Positions before `skip_first` keep their own activation. By arithmetic
    that may be off by `own_error` of its norm, and `x̂` by `error` of its own.
    """

    subject: Subject
    site: str
    reconstruct: Reconstruct
    skip_first: int
    likelihood: TokenLikelihood
    own_error: float
    error: float
    batches: Batches

    @torch.no_grad()
    def read(self, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids `[T]` for what is given of a prompt, `[T, d]`, and which of them it tells from all others that were
        tried, `[T]`.

        From the left, tokens that give `x̂` within the error are taken after each beginning that fits so far;
        a token is told if all prompts that fit agree on it. At each position the 64 likeliest are tried, and more only
        while none fits, all of the vocabulary if need be; then the nearest pass through the model alone, as the prompt
        did, since a code that jumps may have jumped in between. Of more than 8 beginnings, the nearest are followed;
        what those differ in that were left is not told. Nor is anything from where none fits.
        """
        ids = self.likelihood.likeliest(given)[:, 0].to(self.subject.device)
        alive = ids.new_zeros(1, 0)
        open_ = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # no longer told, whatever comes after
        for position in range(len(ids)):
            fitting, nearest = self._fitting(alive, given, position)
            if not len(fitting):
                fitting = self._settled(nearest, ids, given)
            elif len(fitting) > 1 and self.error > COARSE * EXACT:
                fitting = self._settled(fitting, ids, given)
            if not len(fitting):
                open_[position:] = True
                break
            if len(fitting) > FOLLOWED:
                open_[: position + 1] |= (fitting != fitting[0]).any(0)
            alive = fitting[:FOLLOWED]
        reached = alive.shape[1]
        ids[:reached] = alive[0]
        open_[:reached] |= (alive != alive[0]).any(0)
        return ids, ~open_

    def _fitting(
        self, beginnings: torch.Tensor, given: torch.Tensor, position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The beginnings `[B, t]` with each token that fits after them, nearest first, `[F, t + 1]`; and where none
        does, with those that come nearest.
        """
        wanted = given[position]
        bound = (self.error if position >= self.skip_first else self.own_error) * float(wanted.norm())
        order = self.likelihood.scores(given, position, position + 1)[0].argsort(descending=True, stable=True)
        order = order.to(beginnings.device)
        following = [self.subject.continuation(each, self.site) for each in beginnings]
        begun, size, most = 0, COMPARED, max(len(order), COMPARED * FOLLOWED)
        tried, away = [beginnings.new_zeros(0, position + 1)], [wanted.new_zeros(0)]
        while begun < len(order) and begun * len(beginnings) < most:
            tokens = order[begun : begun + size]
            begun, size = begun + size, size * GROWTH
            distances = torch.stack([self._distances(each, tokens, wanted, position) for each in following])
            rows, columns = (distances <= bound).nonzero(as_tuple=True)
            if len(rows):
                nearest = distances[rows, columns].argsort(stable=True)
                return torch.cat([beginnings[rows], tokens[columns, None]], 1)[nearest], tried[0]
            least = distances.flatten().argsort(stable=True)[:COMPARED]
            tried.append(torch.cat([beginnings[least // len(tokens)], tokens[least % len(tokens), None]], 1))
            away.append(distances.flatten()[least])
        return tried[0], torch.cat(tried)[torch.cat(away).argsort(stable=True)[:COMPARED]]

    def _settled(self, fitting: torch.Tensor, ids: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Of the beginnings `[F, t]` that fit, those that give the same when each passes through the model alone.

        So did the prompt: then the error of other shapes is not in the way. The nearest are looked at; all are given
        back if too many are left to be followed.
        """
        last = fitting.shape[1] - 1
        counted = torch.arange(len(ids)) >= self.skip_first
        left: list[torch.Tensor] = []
        for each in fitting[:COMPARED]:
            row = torch.cat([each, ids[last + 1 :]])
            found = at_least_single(self.subject.capture(row[None], [self.site])[self.site][0]).to(given)
            found = replaced(found, self.reconstruct, counted)[last]
            if float(distance(found, given[last])) <= EXACT * float(given[last].norm()):
                left.append(each)
            if len(left) > FOLLOWED:
                return fitting
        return torch.stack(left) if left else fitting[:0]

    def _distances(
        self,
        following: Callable[[torch.Tensor], torch.Tensor],
        tokens: torch.Tensor,
        wanted: torch.Tensor,
        position: int,
    ) -> torch.Tensor:
        """`‖x̂(O(x)) − x̂‖` with each of these tokens at a position, `[K]`."""

        def of(chosen: slice) -> torch.Tensor:
            found = at_least_single(following(tokens[chosen, None])[:, 0])
            counted = torch.full((len(found),), position >= self.skip_first)
            return distance(replaced(found, self.reconstruct, counted), wanted)

        return self.batches.joined(len(tokens), of, f"{self.site}/candidates through an autoencoder", ROWS)


def knowing(
    inverter: Inverter,
    subject: Subject,
    site: str,
    reconstruct: Reconstruct,
    skip_first: int,
    samples: Sequence[torch.Tensor],
    batches: Batches,
    context: Context,
    label: str,
) -> Aware:
    """One that knows this autoencoder, and has learnt from reconstructions of samples which tokens are likely.

    `samples` are batches of token ids `[prompts, T]`. `inverter` is of the activations themselves; `label` is that of
    what is drawn.
    """
    error = error_through(
        subject, site, reconstruct, skip_first, samples, inverter.error, context.generator(f"{label}/error")
    )

    def edited(activation: torch.Tensor) -> torch.Tensor:
        counted = torch.arange(activation.shape[1]) >= skip_first
        return replaced(activation, reconstruct, counted.expand(activation.shape[:2]))

    likelihood = inverter.likelihood
    axes = subject.axes(site)
    if axes[:2] == ("batch", "sequence") and len(axes) == 3:  # else an edit sees other axes: the order is worse then
        with subject.edit(site, edited):
            likelihood = TokenLikelihood(subject, site, samples, batches, context)
    return Aware(subject, site, reconstruct, skip_first, likelihood, inverter.error, error, batches)


@torch.no_grad()
def error_through(
    subject: Subject,
    site: str,
    reconstruct: Reconstruct,
    skip_first: int,
    samples: Sequence[torch.Tensor],
    error: float,
    generator: torch.Generator,
) -> float:
    """By how much of its norm `x̂` may be off where `x` is off by `error` of its own, in a random direction δ:

        2 · the 99th percentile of ‖x̂(x + δ) − x̂(x)‖ / ‖x̂(x)‖,   ‖δ‖ = error ‖x‖,

    over some positions of the samples, batches of token ids `[prompts, T]`; at least `error`.
    """
    found = [subject.capture(ids[: max(1, MEASURED // ids.shape[1])], [site])[site] for ids in samples]
    x = torch.cat([at_least_single(each)[:, skip_first:].flatten(0, 1) for each in found]).float()
    if not len(x):
        return error
    moved = torch.randn(x.shape, generator=generator).to(x)
    moved *= error * x.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)
    own = reconstruct(x)
    off = distance(reconstruct(x + moved), own) / own.norm(dim=-1).clamp_min(1e-30)
    return max(error, SAFETY * float(off.cpu().quantile(QUANTILE)))
