"""The proof: what was found passes through the model once more, alone, and every token is held against its rivals."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from probekit_plugins.exact_inverter.search import ROWS, distance
from probekit_plugins.exact_inverter.verdict import Verdict, settle

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.batches import Batches
    from probekit_plugins.exact_inverter import SearchOptions
    from probekit_plugins.exact_inverter.search import Search
    from probekit_plugins.exact_inverter.targets import Target

# A rival is ruled out where noise makes it less likely than what was found by this factor's logarithm.
LOG_ODDS = 30.0
# A token is verified without all others being tried if no rival is within so many times its bound.
CLEAR = 4.0
# Tokens that match as well, of which the nearest is looked for: a pass of the prompt for each.
TIES = 256
# Positions whose rivals are computed at once: fewer passes, but more tokens in each.
TOGETHER = 4


class Proof:
    """Holds the outcome of a search against the activations. `arithmetic`, `[T]`, bounds the model's own rounding."""

    def __init__(
        self,
        subject: Subject,
        site: str,
        target: Target,
        search: Search,
        arithmetic: torch.Tensor,
        options: SearchOptions,
        batches: Batches,
    ) -> None:
        self._subject, self._site, self._target, self._search = subject, site, target, search
        self._options, self._batches = options, batches
        self._arithmetic = arithmetic
        self._bound = arithmetic + target.blur()
        self._norms = target.norms.clamp_min(1e-30)
        self._noisy = target.noisy
        self._under: dict[int, torch.Tensor] = {}  # the distances of the prompt with each of the tokens tied last
        # Of ties: the position, and the distances from there on with each of the other tokens.
        self._alternatives: list[tuple[int, torch.Tensor]] = []
        self._distances = self._alone(search.ids)
        matches = (self._distances <= self._bound).tolist()
        # What no token gives, though later tokens match after it, is taken for damaged.
        last = max((place for place, there in enumerate(search.evidence) if there and matches[place]), default=-1)
        for place in range(last):
            search.evidence[place] &= matches[place]

    def _alone(self, ids: torch.Tensor) -> torch.Tensor:
        """The distances `[T]` of tokens that pass through the model as the prompt did: alone, and all of them."""
        found = self._subject.capture(ids[None], [self._site])[self._site][0]
        return distance(found, self._target.activations)

    def verdicts(self) -> list[Verdict]:
        """One for each token."""
        verdicts = [self._verdict(position) for position in range(len(self._search.ids))]
        settle(verdicts, self._noisy)
        return verdicts

    def _verdict(self, position: int) -> Verdict:
        """What a token is held against, without its status."""
        verdict = Verdict()
        search, evidence = self._search, self._search.evidence
        decides = next((place for place in range(position, len(evidence)) if evidence[place]), None)
        if decides is None and self._target.known[position]:  # nothing matched there, and nothing comes after
            decides = position
        if decides is None or (evidence[decides] and decides >= search.confirmed):
            return verdict
        verdict.distance = float(self._distances[decides] / self._norms[decides])
        verdict.bound = float(self._bound[decides] / self._norms[decides])
        if verdict.distance > verdict.bound:
            return verdict
        # Whichever of the tied tokens before it is the right one, this one has to match.
        bound = float(self._bound[decides])
        holds = all(float(under[:, decides - first].max()) <= bound for first, under in self._alternatives)
        alone = self._hold_against_rivals(verdict, position, decides)
        verdict.alone = alone and holds and (decides == position or not self._unknown_beside(position))
        return verdict

    def _unknown_beside(self, position: int) -> bool:
        """Whether there are other unknown positions before the activation that decides on an unknown one."""
        evidence = self._search.evidence
        return (position > 0 and not evidence[position - 1]) or not evidence[position + 1]

    def _hold_against_rivals(self, verdict: Verdict, position: int, decides: int) -> bool:
        """Note the nearest rival, and how many are not ruled out; whether that speaks for all others as well: the whole
        vocabulary was tried, or none of the likeliest and nearest is anywhere near.
        """
        vocabulary = self._subject.vocabulary
        rivals = self._rivals(position, known=decides == position)
        if not len(rivals):
            return vocabulary == 1
        distances = self._distances_at(rivals, position, decides)
        if self._is_close(distances, decides) and len(rivals) < vocabulary - 1 <= self._options.combinations:
            rivals = self._all_but(self._search.ids[position])
            distances = self._distances_at(rivals, position, decides)
        left = rivals[~self._ruled_out(distances, decides)]
        if len(left) and not self._noisy:
            before = int(self._search.ids[position])
            left = self._settled(left, distances, rivals, position, decides)
            if before != int(self._search.ids[position]):  # what was found and is not the nearest is a rival now
                swapped = rivals == self._search.ids[position]
                rivals = torch.where(swapped, before, rivals)
                distances = torch.where(swapped, self._under[before][decides], distances)
        verdict.ties = len(left)
        verdict.distance = float(self._distances[decides] / self._norms[decides])
        verdict.rival = int(rivals[distances.argmin()])
        verdict.rival_distance = float(distances.min() / self._norms[decides])
        return len(rivals) == vocabulary - 1 or (decides == position and not self._is_close(distances, decides))

    def _is_close(self, distances: torch.Tensor, at: int) -> bool:
        """Whether a rival is so near that another one, which was not tried, may be within the bound."""
        return not bool(self._ruled_out(distances, at, CLEAR).all())

    def _settled(
        self, tied: torch.Tensor, distances: torch.Tensor, rivals: torch.Tensor, position: int, decides: int
    ) -> torch.Tensor:
        """Among tokens within the bound, take the nearest when each passes through the model alone, as the prompt did;
        the tokens that are left beside it. One that gives the activation bit for bit leaves none that does not.
        """
        ids = self._search.ids
        tied = tied[torch.stack([distances[rivals == token][0] for token in tied]).argsort(stable=True)]
        self._under = {int(ids[position]): self._distances}
        for token in tied.tolist()[:TIES]:
            changed = ids.clone()
            changed[position] = token
            self._under[token] = self._alone(changed)
        nearest = min(self._under, key=lambda token: float(self._under[token][decides]))
        if nearest != int(ids[position]):
            self._search.compared.clear()  # what was tried came after another token
            self.__dict__["_held"] = {}  # so did these, and they need not be computed to be forgotten
        ids[position], self._distances = nearest, self._under[nearest]
        everything = len(self._under) == len(tied) + 1
        exact = float(self._distances[decides]) == 0 and everything
        left = [
            token for token in self._under if token != nearest and not (exact and float(self._under[token][decides]))
        ]
        left += [token for token in tied.tolist() if token not in self._under]
        others = torch.tensor(left, device=tied.device, dtype=tied.dtype)
        if len(others):  # whichever is the right one, what comes after has to match
            self._alternatives.append((position, self._distances_with(others, position, len(ids))))
        return others

    def _all_but(self, token: torch.Tensor) -> torch.Tensor:
        everything = torch.arange(self._subject.vocabulary, device=token.device)
        return everything[everything != token]

    def _rivals(self, position: int, known: bool) -> torch.Tensor:
        """Other tokens to compare with: the likeliest, those with the nearest embeddings, and what was tried before."""
        search, token, vocabulary = self._search, self._search.ids[position], self._subject.vocabulary
        count = vocabulary if self._options.rivals == "all" else self._options.rivals
        if not known and vocabulary <= self._options.combinations:
            count = vocabulary
        if count >= vocabulary:
            return self._all_but(token)
        compared = search.compared[position][0] if known and position in search.compared else token.new_zeros(0)
        mixed = self._likely_and_near[position]
        chosen = [each for each in dict.fromkeys(mixed.tolist()) if each != int(token)][:count]
        return torch.tensor(
            sorted({*chosen, *compared.tolist()} - {int(token)}), device=token.device, dtype=token.dtype
        )

    @cached_property
    def _likely_and_near(self) -> torch.Tensor:
        """For each position by turns the likeliest tokens, those with the nearest embeddings, and those with the
        closest direction, which is all that a norm leaves of an embedding: `[T, 3 k]`.
        """
        count = 1 if self._options.rivals == "all" else min(self._options.rivals + 1, self._subject.vocabulary)
        embeddings = self._subject.embed(self._search.ids[None])
        near = [
            self._subject.decode(embeddings, top_k=count, decoder=decoder)[0].to(self._search.ids)
            for decoder in ("nearest", "cosine")
        ]
        return torch.stack([self._search.likeliest(count), *near], -1).flatten(1)

    def _distances_at(self, rivals: torch.Tensor, position: int, decides: int) -> torch.Tensor:
        """Distances with other tokens at a position from the activation that decides, `[K]`."""
        if decides > position:
            return self._distances_with(rivals, position, decides + 1)[:, -1]
        distances = torch.full_like(self._distances, torch.inf)[:1].repeat(self._subject.vocabulary)
        for known in (self._search.compared.get(position), self._held.get(position)):
            if known:
                distances[known[0]] = known[1].to(distances)
        missing = rivals[distances[rivals].isinf()]
        if len(missing):
            distances[missing] = self._distances_with(missing, position, position + 1)[:, 0].to(distances)
        return distances[rivals]

    @cached_property
    def _held(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """For each position whose activation counts, rivals that were not tried yet and their distances.

        Some positions at once: rows that begin with one prefix, each as found but for a rival in its place.
        """
        held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        search, settled = self._search, self._search.ids[: self._search.confirmed]
        for first in range(0, len(settled), TOGETHER):
            found = settled[first : first + TOGETHER]
            rivals: list[tuple[int, torch.Tensor]] = []
            for position in range(first, first + len(found)):
                if search.evidence[position] and self._options.rivals != "all":
                    tried = search.compared.get(position, (found[:0],))[0]
                    wanted = self._rivals(position, known=True)
                    rivals.append((position, wanted[~torch.isin(wanted, tried)]))
            places = [position - first for position, tokens in rivals for _ in range(len(tokens))]
            if not places:
                continue
            rows = found.repeat(len(places), 1)
            column = torch.tensor(places, device=rows.device)[:, None]
            rows.scatter_(1, column, torch.cat([tokens for _, tokens in rivals])[:, None])
            distances = self._after(settled[:first], rows, first).gather(1, column)[:, 0]
            parts = distances.split([len(tokens) for _, tokens in rivals])
            held |= {position: (tokens, part) for (position, tokens), part in zip(rivals, parts, strict=True)}
        return held

    def _distances_with(self, tokens: torch.Tensor, position: int, end: int) -> torch.Tensor:
        """Distances from the activations with other tokens at a position, those after it as found: `[K, end − t]`."""
        ids = self._search.ids
        rows = ids[position:end].repeat(len(tokens), 1)
        rows[:, 0] = tokens
        return self._after(ids[:position], rows, position)

    def _after(self, prefix: torch.Tensor, rows: torch.Tensor, first: int) -> torch.Tensor:
        """Distances of rows of tokens after a prefix, which stand at the positions from `first` on: `[K, m]`."""
        continuation = self._subject.continuation(prefix, self._site)
        wanted = self._target.activations[first : first + rows.shape[1]]
        most = max(1, 4 * ROWS // (rows.shape[1] + 3))
        where = f"{self._site}/rivals"
        return self._batches.joined(len(rows), lambda part: distance(continuation(rows[part]), wanted), where, most)

    def _ruled_out(self, distances: torch.Tensor, at: int, times: float = 1.0) -> torch.Tensor:
        """Which rivals, by how far they are from the activation at a position, `[K]`, are not what it came from.

        A rival would have to be within the bound. Within noise of standard deviation σ, it would also have to be about
        as likely: `(‖a_rival − a‖² − ‖a_found − a‖²) / 2σ²` is how much less its log-likelihood is. `times` asks for
        as many times the bound, and the odds.
        """
        beyond = distances > times * self._bound[at]
        sigma = float(self._target.sigma[at])
        if not sigma:
            return beyond
        exact = float(self._arithmetic[at] + self._target.rounding[at])
        nearer = (distances - exact).clamp_min(0).square() - (self._distances[at] + exact).square()
        return beyond | (nearer > 2 * times * LOG_ODDS * sigma**2)
