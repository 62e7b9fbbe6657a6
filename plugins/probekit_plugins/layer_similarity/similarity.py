"""What is kept of all activations: HSIC of every pair of sites, and the angles between neighbours."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from probekit import AnalysisError
from probekit_plugins.activation_rows import finite_rows, in_double
from probekit_plugins.layer_similarity.hsic import LEAST_ROWS, centred_gram, hsic
from probekit_plugins.layer_similarity.minibatches import Minibatches, Rows

if TYPE_CHECKING:
    from probekit import ActivationBatch
    from probekit_plugins.layer_similarity import LayerSimilarityOptions

# HSIC is added up in so many groups of minibatches, so that leaving out one after the other tells the error.
GROUPS = 10
# A site whose activations vary by less than this share of their length holds nothing: it is what fp32 rounds off.
_NO_SPREAD = 1e-7


class Similarity:
    """Sums over tokens, from which CKA and angles follow. Memory does not grow with the number of prompts."""

    def __init__(self, options: LayerSimilarityOptions, generator: torch.Generator) -> None:
        self.options = options
        self._generator = generator
        self.sites: list[str] = []
        self.widths: dict[str, int] = {}
        self._devices: dict[str, torch.device] = {}
        self.prompts = 0
        self.tokens = 0
        # Tokens that count, those of them that are compared, and minibatches.
        self.tokens_kept = 0
        self.tokens_compared = 0
        self.minibatches = 0
        self.neighbours: dict[tuple[str, str], Neighbours] = {}

    def add(self, batch: ActivationBatch) -> None:
        """Take in a batch. Raises AnalysisError, naming the site, for an activation that is not finite, or if there
        is one site only.
        """
        if not self.sites:
            self._begin(batch)
        self.prompts += len(batch.prompts)
        self.tokens += len(batch.positions)
        kept = batch.positions >= self.options.skip_first
        rows: Rows = {}
        for site, width in self.widths.items():
            whole = finite_rows(batch, site, width)
            self._devices[site] = whole.device
            rows[site] = whole[kept.to(whole.device)]
        self.tokens_kept += int(kept.sum())
        for (before, after), neighbours in self.neighbours.items():
            neighbours.add(rows[before], rows[after])
        for dealt in self._minibatches.add(rows):
            self._compare(dealt)

    def _begin(self, batch: ActivationBatch) -> None:
        self.sites = batch.sites
        if len(self.sites) < 2:
            raise AnalysisError(
                f"Sites are compared with one another, and {self.sites[0]} is the only one; give at least two, such as "
                "-o sites=embedding,blocks."
            )
        self.widths = {site: finite_rows(batch, site).shape[1] for site in self.sites}
        pairs = pairwise(self.sites)
        self.neighbours = {pair: Neighbours() for pair in pairs if self.widths[pair[0]] == self.widths[pair[1]]}
        memory = self.options.buffer_memory * 2**30
        self._minibatches = Minibatches(self.options.minibatch, memory, self.widths, self._generator)
        self._hsic = torch.zeros(GROUPS, len(self.sites), len(self.sites), dtype=torch.float64)
        self._squares = torch.zeros(len(self.sites), dtype=torch.float64)

    def _compare(self, dealt: list[Rows]) -> None:
        """Add HSIC of these minibatches, weighted by their tokens."""
        for minibatch in dealt:
            count = len(minibatch[self.sites[0]])
            if count < LEAST_ROWS:  # of the rest of a pass
                continue
            wide = [in_double(minibatch[site].to(self._devices[site])) for site in self.sites]
            self._hsic[self.minibatches % GROUPS] += count * hsic([centred_gram(rows).cpu() for rows in wide])
            self._squares += torch.stack([rows.square().sum().cpu() for rows in wide])
            self.tokens_compared += count
            self.minibatches += 1

    def end(self) -> None:
        """Compare what is left, after the last batch."""
        self._compare(self._minibatches.rest())

    def cka(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """CKA of every pair `[sites, sites]`, NaN where a site does not vary, and its standard error.

        The error is the jackknife's over groups of minibatches, None for fewer than two: how far CKA may be from that
        of all these tokens at once. Other prompts would give another CKA, of which it says nothing.
        """
        total = self._hsic.sum(0)
        lengths = self._squares / max(1, self.tokens_compared)
        still = total.diagonal() / max(1, self.tokens_compared) <= (_NO_SPREAD**2 * lengths) ** 2
        whole = _ratio(total)
        whole[still] = math.nan
        whole[:, still] = math.nan
        groups = min(GROUPS, self.minibatches)
        if groups < 2:
            return whole, None
        without = torch.stack([_ratio(total - self._hsic[group]) for group in range(groups)])
        spread = (without - without.mean(0)).square().sum(0)
        return whole, (spread * (groups - 1) / groups).sqrt()


def _ratio(total: torch.Tensor) -> torch.Tensor:
    """`H_ij / √(H_ii H_jj)`, in which the weights of minibatches cancel. NaN where a site does not vary."""
    roots = total.diagonal().sqrt()
    return (total / roots[:, None] / roots).clamp(-1, 1)


class Neighbours:
    """The cosine and the angle between two sites' activations of one token, over all tokens where neither is zero."""

    def __init__(self) -> None:
        self.count = 0
        self._cosines = 0.0
        self._angles = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take in rows `[tokens, width]` of both."""
        first, second = in_double(before), in_double(after.to(before.device))
        lengths = first.norm(dim=1) * second.norm(dim=1)
        directed = lengths > 0
        cosines = ((first * second).sum(1)[directed] / lengths[directed]).clamp(-1, 1)
        self.count += len(cosines)
        self._cosines += float(cosines.sum())
        self._angles += float(cosines.arccos().sum()) / math.pi

    @property
    def cosine(self) -> float | None:
        """The mean cosine; None without a token."""
        return self._cosines / self.count if self.count else None

    @property
    def angle(self) -> float | None:
        """The mean angle as a share of half a turn, `arccos(cos) / π`; None without a token."""
        return self._angles / self.count if self.count else None
