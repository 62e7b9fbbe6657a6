"""How likely each token is, given its activation: a linear model of a site, fitted on the model's own outputs.

At a position with token x, `a = μ + w_x B + u_x + N(0, Σ)`: linear in the token's embedding `w_x`, with a correction
`u_x` for tokens that were seen, and everything that comes from the tokens before it as noise. By Bayes' rule that gives
each token's likelihood (linear discriminant analysis), and the mean of the embedding, a ridge regression from
activations to embeddings. Where the model's head reads the site, its own prediction from the activation before is the
prior over tokens. The first position, at which nothing comes before, has a model of its own.

Nothing that is said here is certain: it puts candidates into an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError, ModelError, UsageError
from probekit_plugins.batches import Batches
from probekit_plugins.precision import at_least_single
from probekit_plugins.texts import beginning
from probekit_plugins.writing import PLAIN, SAMPLING, can_generate

if TYPE_CHECKING:
    from probekit import Context, Subject

# Positions that are fitted on, at least; for wider models as many per dimension.
POSITIONS = 4096
PER_DIMENSION = 4
# Of a large vocabulary, tokens that are seen alone, at least.
ALONE = 512
# Positions without a rest that are added to those of each token.
DRAWN_TO_ZERO = 5
# Tokens that the model writes in one go: its writing costs a forward pass for each.
WRITTEN = 32
# Positions whose scores are computed at once.
AT_ONCE = 64
# Entries of an activation that are looked at; wider ones are projected.
ENTRIES = 1024
# Weights of the head's prediction that are tried; positions that they are tried on.
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
TRIALS = 256


def sampled_prompts(
    subject: Subject, length: int, context: Context, purpose: str, batches: Batches | None = None
) -> list[torch.Tensor]:
    """Prompts to fit on, as batches of token ids `[prompts, tokens]`: half uniformly random ones of that length, half
    written by the model itself, at temperature 1 from random first tokens, where it can.
    """
    positions = max(POSITIONS, PER_DIMENSION * subject.width)
    fixed = subject.anatomy.sequence
    most = subject.context or max(length, 2)
    length = fixed or min(max(length, 2), most)
    start = beginning(subject)[: length - 1]

    def random(count: int, length: int, label: str) -> torch.Tensor:
        generator = context.generator(f"{purpose}/{label}")
        ids = torch.randint(subject.vocabulary, (count, length), generator=generator)
        ids = torch.where(ids == _padding(subject), (ids + 1) % subject.vocabulary, ids)
        ids[:, : len(start)] = torch.tensor(start, dtype=torch.long)
        return ids.to(subject.device)

    drawn = [random(-(-positions // (2 * length)), length, "random")]
    short = min(length, WRITTEN)
    first = random(-(-positions // (2 * short)), min(len(start) + 1, short), "first tokens")
    subject.check_finite(subject.embedding_matrix, "The token embedding")
    writes = can_generate(subject) and fixed is None and short > first.shape[1]
    if writes and bool(subject.capture(first[:1], ["logits"])["logits"].isfinite().all()):
        new = short - first.shape[1]
        settings = {**PLAIN, **SAMPLING, "max_new_tokens": new, "min_new_tokens": new}
        seed = context.generator(f"{purpose}/written").initial_seed() >> 1

        def write(chosen: slice) -> torch.Tensor:
            return subject.generate(first[chosen], seed + chosen.start, **settings)

        try:
            return [*drawn, (batches or Batches(context)).joined(len(first), write, f"{purpose}/written")]
        except UsageError as error:
            context.log(f"The model cannot write the prompts that candidates are learnt from: {error}")
    return [*drawn, random(len(first), short, "more")]


def _padding(subject: Subject) -> int:
    """The token that some models read positions or masks from, or -1."""
    token = getattr(getattr(subject.model, "config", None), "pad_token_id", None)
    return token if isinstance(token, int) else -1


@dataclass
class Fit:
    """`a = μ + w_x B + u_x + N(0, Σ)`, whitened: with `L Lᵀ = Σ⁻¹`, what follows is `a L`."""

    mean: torch.Tensor  # [q], μ
    whitening: torch.Tensor  # [q, q], L
    table: torch.Tensor  # [V, q], (w_x B + u_x) L for each token x
    halved_norms: torch.Tensor  # [V], ½ ‖row of the table‖²
    back: torch.Tensor  # [q, d], E[e | a] = w̄ + (a − μ) L back
    centre: torch.Tensor  # [d], w̄

    @classmethod
    def of(cls, matrix: torch.Tensor, ids: torch.Tensor, activations: torch.Tensor) -> Fit:
        """Least squares with a little ridge, in float64: ids `[n]`, activations `[n, q]`, `matrix` `[V, d]`."""
        centre = matrix.mean(0)
        mean = activations.mean(0)
        inputs, outputs = matrix[ids].double() - centre.double(), activations.double() - mean.double()
        gram = inputs.T @ inputs
        map_ = torch.linalg.solve(_ridged(gram, 1e-3), inputs.T @ outputs)
        rest = outputs - inputs @ map_
        correction = _corrections(ids, rest, len(matrix))
        rest = rest - correction[ids]
        covariance = rest.T @ rest / len(rest)
        # Half the weight on the diagonal where there are as many positions as entries, none where there are many more.
        covariance = _ridged(covariance, 1e-4 + 0.1 * min(1.0, covariance.shape[0] / len(rest)))
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        seen = map_ @ whitening
        table = (matrix - centre) @ seen.to(matrix) + (correction @ whitening).to(matrix)
        of_tokens = (matrix - centre).double()
        prior = torch.linalg.inv(_ridged(of_tokens.T @ of_tokens / len(matrix), 1e-6))
        back = torch.linalg.solve(seen @ seen.T + prior, seen).T
        return cls(
            mean.to(matrix), whitening.to(matrix), table, table.square().sum(1) / 2, back.to(matrix), centre.to(matrix)
        )

    def whitened(self, activations: torch.Tensor) -> torch.Tensor:
        return (activations - self.mean) @ self.whitening

    def log_likelihoods(self, activations: torch.Tensor) -> torch.Tensor:
        """`log p(a | x)` up to a constant, `[…, q]` → `[…, V]`."""
        return self.whitened(activations) @ self.table.T - self.halved_norms

    def embeddings(self, activations: torch.Tensor) -> torch.Tensor:
        """`E[e | a]`, `[…, q]` → `[…, d]`."""
        return self.centre + self.whitened(activations) @ self.back


def _ridged(gram: torch.Tensor, share: float) -> torch.Tensor:
    """A matrix with a share of its mean diagonal entry added to the diagonal."""
    size = float(gram.diagonal().mean()) or 1.0
    return gram + share * size * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _corrections(ids: torch.Tensor, rest: torch.Tensor, count: int) -> torch.Tensor:
    """`u_x`, `[V, q]`: the mean of what is left over of token x, as if some more positions were there with nothing left
    over. Zero for a token that was not seen.
    """
    sums = torch.zeros(count, rest.shape[1], dtype=rest.dtype, device=rest.device).index_add_(0, ids, rest)
    times = torch.bincount(ids, minlength=count).to(sums)
    return sums / (times + DRAWN_TO_ZERO)[:, None]


class TokenLikelihood:
    """`scores(activations)`, `[T, w]` → `[T, V]`: how likely each token is at each position of one prompt; `likeliest`
    the first of each.

    `embeddings(activations)`, `[…, T, w]` → `[…, T, d]`: the embeddings that are to be expected.
    """

    def __init__(
        self, subject: Subject, site: str, prompts: Sequence[torch.Tensor], batches: Batches, context: Context
    ) -> None:
        """Fit at a site on batches of token ids, `[prompts, tokens]` each.

        Raises AnalysisError if the site has other positions than the prompt's, or activations that are not finite.
        """
        self._subject = subject
        with torch.no_grad():
            captured = []
            for number, ids in enumerate(prompts):

                def of(chosen: slice, ids: torch.Tensor = ids) -> torch.Tensor:
                    return at_least_single(subject.capture(ids[chosen], [site])[site])

                captured.append(batches.joined(len(ids), of, f"{site}/learning {number}"))
            width = captured[0].shape[-1]
            if any(found.shape[1] != ids.shape[1] for found, ids in zip(captured, prompts, strict=True)):
                raise AnalysisError(
                    f"The activation at {site} has other positions than the prompt, so that no token belongs to one; "
                    "choose another site."
                )
            self._projection: torch.Tensor | None = None
            if width > ENTRIES:
                drawn = torch.randn(width, ENTRIES, generator=context.generator(f"projection/{site}"))
                self._projection = torch.linalg.qr(drawn).Q.to(captured[0])
            subject.check_finite(captured[0], f"The activation at {site}")
            matrix = subject.embedding_matrix.to(captured[0])
            ids, activations = self._flat(prompts, captured, slice(0, 1), 1.0)
            every = 1 if subject.vocabulary <= POSITIONS else subject.vocabulary // max(ALONE, 2 * subject.width)
            alone = torch.arange(subject.vocabulary, device=ids.device)[:: max(1, every)]
            if subject.anatomy.sequence is None and _padding(subject) < 0:
                first = batches.joined(
                    len(alone), lambda chosen: subject.capture(alone[chosen, None], [site])[site], f"{site}/alone"
                )
                ids = torch.cat([ids, alone])
                activations = torch.cat([activations, self._projected(at_least_single(first[:, 0]))])
            self._first = Fit.of(matrix, ids, activations)
            several = any(ids.shape[1] > 1 for ids in prompts)
            later = self._flat(prompts, captured, slice(1, None), 0.75)
            self._later = Fit.of(matrix, *later) if several else self._first
            self._weight = 0.0
            if several and subject.head_width == width:
                self._weight = self._best_weight(prompts, captured)

    def _flat(
        self, prompts: Sequence[torch.Tensor], captured: Sequence[torch.Tensor], positions: slice, share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and activations of these positions of the first share of each batch's prompts."""
        kept = [-(-int(share * 100) * len(ids) // 100) for ids in prompts]
        ids = [each[:count, positions].flatten() for each, count in zip(prompts, kept, strict=True)]
        found = [each[:count, positions].flatten(0, 1) for each, count in zip(captured, kept, strict=True)]
        return torch.cat(ids).to(found[0].device), self._projected(torch.cat(found))

    def _projected(self, activations: torch.Tensor) -> torch.Tensor:
        return activations if self._projection is None else activations @ self._projection

    def _best_weight(self, prompts: Sequence[torch.Tensor], captured: Sequence[torch.Tensor]) -> float:
        """The weight of the head's prediction that puts the right tokens first, of prompts that were not fitted on."""
        scores, priors, right = [], [], []
        for ids, activations in zip(prompts, captured, strict=True):
            first = len(ids) - max(1, len(ids) // 4)
            held_out = activations[first:][: TRIALS // ids.shape[1] + 1]
            prior = self._prior(held_out)
            if prior is None:
                return 0.0
            scores.append(self._later.log_likelihoods(self._projected(held_out[:, 1:])).flatten(0, 1))
            priors.append(prior.flatten(0, 1))
            right.append(ids[first:][: len(held_out), 1:].flatten())
        score, prior, token = torch.cat(scores), torch.cat(priors), torch.cat(right).to(scores[0].device)[:, None]

        def mean_rank(weight: float) -> float:
            weighed = score + weight * prior
            return float((weighed > weighed.gather(1, token)).sum(1).add(1).double().log().mean())

        return min(WEIGHTS, key=mean_rank)

    def _prior(self, activations: torch.Tensor) -> torch.Tensor | None:
        """`log p(x_t)` by the head on the activation at t − 1, `[…, T, w]` → `[…, T − 1, V]`; None without a head."""
        try:
            logits = at_least_single(self._subject.unembed(activations[..., :-1, :])).to(activations)
        except (ModelError, UsageError):
            return None
        found: torch.Tensor = logits.log_softmax(-1)
        missing = self._subject.vocabulary - found.shape[-1]
        least = found.amin(-1, keepdim=True)
        return torch.cat([found, least.expand(*found.shape[:-1], missing)], -1)[..., : self._subject.vocabulary]

    @torch.no_grad()
    def scores(self, activations: torch.Tensor, first: int = 0, end: int | None = None) -> torch.Tensor:
        """How likely each token is at the positions from `first` to before `end` of one prompt, `[T, w]` →
        `[end − first, V]`, greater for likelier; zeros where an activation is not finite. One position's are comparable
        with each other, not with another's.
        """
        end = len(activations) if end is None else end
        before = max(first - 1, 0)  # the prior at a position is read from the one before it
        activations = activations[before:end].to(self._first.mean)
        known = torch.isfinite(activations).all(-1)
        activations = torch.where(known[:, None], activations, 0)
        seen = self._projected(activations)[first - before :]
        fits = [self._first if position == 0 else self._later for position in (first, first + 1)]
        scores = torch.cat([fit.log_likelihoods(part) for fit, part in zip(fits, (seen[:1], seen[1:]), strict=True)])
        scores[~known[first - before :]] = 0
        if self._weight and len(activations) > 1:
            prior = self._prior(activations)
            if prior is not None:
                scores[-len(prior) :] += self._weight * torch.where(known[:-1, None], prior, 0)
        return scores

    def likeliest(self, activations: torch.Tensor, count: int = 1) -> torch.Tensor:
        """The likeliest tokens at each position of one prompt, best first, `[T, w]` → `[T, count]`."""
        length = len(activations)
        parts = ((at, min(at + AT_ONCE, length)) for at in range(0, length, AT_ONCE))
        return torch.cat([self.scores(activations, *part).topk(count).indices for part in parts])

    @torch.no_grad()
    def embeddings(self, activations: torch.Tensor) -> torch.Tensor:
        """The mean of the embedding given the activation, `[…, T, w]` → `[…, T, d]`."""
        seen = self._projected(activations.to(self._first.mean))
        first, later = self._first.embeddings(seen[..., :1, :]), self._later.embeddings(seen[..., 1:, :])
        return torch.cat([first, later], -2)
