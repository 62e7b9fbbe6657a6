"""The search for one prompt: guess all of it, verify in one forward pass, mend the first position that does not match.

A guess of the whole prompt costs one forward pass, which confirms its longest right prefix at once, as in speculative
decoding. At the first position that does not match, candidates are tried as a batch on what the model keeps of the
prefix. A search claims nothing: what it found is proved afterwards.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from probekit_plugins.exact_inverter.candidates import FIRST, along_descent, candidates
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.exact_inverter import SearchOptions
    from probekit_plugins.exact_inverter.targets import Target
    from probekit_plugins.token_likelihood import TokenLikelihood

# Candidates in one batch at most, unless the options say otherwise.
ROWS = 1024
# Where activations are noisy, the best of so many candidates is taken, and not the first that matches.
COMPARED = 64
# A token that does not match is still taken if the next nearest is so many times as far.
DISTINCT = 1.5
# More unknown positions before a known one than this are not searched.
UNKNOWN = 4


class Search:
    """The state of the search for one prompt of T tokens: hold `ids` against the activations by `verify`, until `done`.

    `evidence` says at which positions the activation counts: those that are known, less those that no token gives.
    `tried` counts candidates by position, `by_gradient` those of the gradient policy, `computed` all token positions
    that passed through the model.
    """

    def __init__(
        self,
        subject: Subject,
        site: str,
        target: Target,
        likelihood: TokenLikelihood,
        bound: torch.Tensor,
        options: SearchOptions,
        batches: Batches,
    ) -> None:
        """`likelihood` says which tokens to try first, `bound`, `[T]`, how far an activation of the right tokens may be
        from the given one.
        """
        self._subject, self._site, self._target = subject, site, target
        self._options, self._batches = options, batches
        self._likelihood, self._bound = likelihood, bound
        self._norms = target.norms.clamp_min(1e-30)
        self._noisy = target.noisy
        self._lost = False  # noisy, and a token was taken that cannot be right
        self._exceeded = 1.0  # how many times the bound away tokens were that were taken though they do not match
        self.evidence = target.known.tolist()
        self.ids = likelihood.likeliest(self._seen())[:, 0].to(subject.device)
        self._chosen = [False] * len(self.ids)  # among candidates
        self.confirmed = 0
        self.done = not any(self.evidence)
        self.tried = [0] * len(self.ids)
        self.by_gradient = [0] * len(self.ids)
        self.computed = 0
        # position → other tokens that were tried there after the same tokens, and their distances
        self.compared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.reasons: list[tuple[int, str]] = []  # a position, and why it was not found

    def scores(self, position: int) -> torch.Tensor:
        """How likely each token is at a position, `[V]`."""
        return self._likelihood.scores(self._seen(), position, position + 1)[0].to(self.ids.device)

    def likeliest(self, count: int) -> torch.Tensor:
        """The likeliest tokens at each position, `[T, count]`."""
        return self._likelihood.likeliest(self._seen(), count).to(self.ids.device)

    def _seen(self) -> torch.Tensor:
        """The activations that count, NaN at all other positions, `[T, w]`."""
        counts = torch.tensor(self.evidence, device=self._target.known.device) & self._target.known
        return torch.where(counts[:, None], self._target.activations, torch.nan)

    def verify(self, activations: torch.Tensor) -> None:
        """Go on from the activations `[T, w]` of `ids`: confirm what matches, and mend the first that does not.

        Where activations are noisy, what matches may not be what is nearest: each position is mended then.
        """
        distances = distance(activations, self._target.activations)
        self.computed += len(self.ids)
        mended = False
        for position in range(self.confirmed, len(self.ids)):
            if not self.evidence[position]:
                continue
            if self._noisy and self.confirmed == position and not self._chosen[position]:
                self._mend(position, math.inf)
                mended = True
                continue
            if mended:  # the distances are those of other tokens before
                return None
            if not self._chosen[position]:
                self.tried[position] += 1
            if float(distances[position]) <= float(self._bound[position]):
                self.confirmed = position + 1
            elif self.confirmed < position:
                return self._bridge(self.confirmed, position)
            elif self._chosen[position]:  # matched as a candidate, but not with what comes after it: no causal model
                return self._stop(position)
            else:
                return self._mend(position, float(distances[position]))
        self.done = True
        return None

    def _mend(self, position: int, guessed: float) -> None:
        """Find the token at a position with all tokens before it confirmed."""
        like = self._target.activations
        tried = torch.full((self._subject.vocabulary,), math.inf, device=self.ids.device, dtype=like.dtype)
        tried[self.ids[position]] = guessed
        wanted, bound = self._target.activations[position], float(self._bound[position])
        continuation = self._subject.continuation(self.ids[:position], self._site)
        self.computed += position
        descent = (self._subject, self._site, self.ids[:position], wanted, tried, self._options.gradient_steps)
        scores, first = self.scores(position), COMPARED if self._noisy else FIRST
        for ids, by_gradient in candidates(scores, tried, lambda: along_descent(*descent), self._options, first):

            def of(chosen: slice, ids: torch.Tensor = ids) -> torch.Tensor:
                return distance(continuation(ids[chosen, None])[:, 0], wanted)

            tried[ids] = self._batches.joined(len(ids), of, f"{self._site}/candidates", ROWS)
            self.tried[position] += len(ids)
            self.by_gradient[position] += len(ids) * by_gradient
            self.computed += len(ids)
            if self._noisy and self.tried[position] < min(COMPARED, len(tried)):
                continue
            if self._lost or float(tried.min()) <= bound or self._stands_out(position, tried):
                break
        self.ids[position] = tried.argmin()
        self._chosen[position] = True
        others = tried.isfinite()
        others[self.ids[position]] = False
        self.compared[position] = others.nonzero()[:, 0], tried[others]
        if float(tried.min()) <= bound:
            self.confirmed = position + 1
        else:
            self._give_way(position, tried)

    def _stands_out(self, position: int, tried: torch.Tensor) -> bool:
        """Whether the nearest token does not match, but is about as near as others that were taken, and far nearer than
        the next.
        """
        nearest, second = _two_nearest(tried)
        usual = nearest <= self._exceeded * float(self._bound[position]) and self._exceeded > 1
        enough = int(tried.isfinite().sum()) >= min(self._options.proposals, len(tried))
        return usual and enough and math.isfinite(second) and second > DISTINCT * nearest

    def _give_way(self, position: int, tried: torch.Tensor) -> None:
        """No token matches: take the nearest if it stands out, or if all are noisy, else count the position among those
        that are unknown.
        """
        if self._lost:
            self.confirmed = position + 1
            return
        norm = float(self._norms[position])
        nearest, second = _two_nearest(tried)
        everything = "no token of the vocabulary" if self._options.scan else "none of the tokens that were tried"
        bound = float(self._bound[position]) / norm
        reason = (
            f"At position {position}, {everything} gives the activation within {bound:.2g} of its norm; the "
            f"nearest is {nearest / norm:.2g} away, the next {second / norm:.2g}."
        )
        if not bool(self._target.activations[position].any()):
            reason = f"At position {position} the activation is zero, which {everything} gives."
        self.reasons.append((position, reason))
        if self._noisy:
            self._lost = True
            self.confirmed = position + 1
        elif math.isfinite(second) and second > DISTINCT * nearest:
            self._exceeded = max(self._exceeded, DISTINCT * nearest / max(float(self._bound[position]), 1e-30))
            self.confirmed = position + 1
        else:
            self.evidence[position] = False
            self.done = not any(self.evidence[position:])

    def _bridge(self, first: int, position: int) -> None:
        """Find the tokens from `first` on, whose activations are unknown, with that at the known position after."""
        wanted = self._target.activations[position]
        continuation = self._subject.continuation(self.ids[:first], self._site)
        self.computed += first
        tokens = torch.arange(self._subject.vocabulary, device=self.ids.device)
        spent, bound = 0, float(self._bound[position])
        many = max(1, min(len(tokens), self._options.combinations // len(tokens)))
        anchors = self.scores(position).topk(many).indices
        for anchor in anchors if position - first <= UNKNOWN else []:
            row = torch.cat([self.ids[first:position], anchor[None]])
            # One unknown position at a time, the others as they are: twice where there are several.
            for changed in [*range(position - first)] * (1 if position - first == 1 else 2):
                if spent + len(tokens) > max(self._options.combinations, len(tokens)):
                    break
                rows = row.repeat(len(tokens), 1)
                rows[:, changed] = tokens

                def of(chosen: slice, rows: torch.Tensor = rows) -> torch.Tensor:
                    return distance(continuation(rows[chosen])[:, -1], wanted)

                distances = self._batches.joined(len(rows), of, f"{self._site}/combinations", ROWS)
                spent += len(rows)
                self.computed += rows.numel()
                row = rows[distances.argmin()]
                if float(distances.min()) <= bound:
                    self.ids[first : position + 1] = row
                    for found in range(first, position + 1):
                        self._chosen[found] = True
                        self.tried[found] += spent
                    self.confirmed = position + 1
                    return
        tried = f"none of {spent} combinations of tokens there gives" if spent else "no combination was tried for"
        reason = (
            f"The activations from position {first} to {position - 1} are unknown or match no token, and {tried} the "
            f"activation at {position}."
        )
        self.reasons.append((first, reason))
        self._stop(first)

    def _stop(self, position: int) -> None:
        """Give up from a position on."""
        if not any(place == position for place, _ in self.reasons):
            self.reasons.append((position, f"At position {position}, what matches alone does not in the whole prompt."))
        self.evidence[position:] = [False] * (len(self.evidence) - position)
        self.done = True


def distance(activations: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`‖O(x)_t − a_t‖`, `[…, w]` → `[…]`: always finite."""
    norms = (at_least_single(activations).to(wanted) - wanted).norm(dim=-1)
    most = torch.finfo(norms.dtype).max
    return torch.nan_to_num(norms, nan=most, posinf=most)


def _two_nearest(tried: torch.Tensor) -> tuple[float, float]:
    """The two least distances; infinite where there are none."""
    nearest, second = [*tried.topk(min(2, len(tried)), largest=False).values.tolist(), math.inf][:2]
    return nearest, second
