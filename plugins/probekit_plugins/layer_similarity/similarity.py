"""What is measured of all activations: HSIC of every pair of sites, and the angles between neighbours."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from probekit import AnalysisError
from probekit_plugins import widths
from probekit_plugins.activation_rows import finite_rows, in_double
from probekit_plugins.layer_similarity import LEAST_ROWS
from probekit_plugins.layer_similarity.hsic import centred_gram, hsic
from probekit_plugins.layer_similarity.minibatches import Minibatches, Rows

if TYPE_CHECKING:
    from probekit import ActivationBatch
    from probekit_plugins.layer_similarity import LayerSimilarityOptions

# HSIC is added up in so many groups of minibatches, so that leaving out one after the other tells the error.
GROUPS = 10


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
        """Compare what is left, after the last batch. Raises AnalysisError if no token counts."""
        skipped = self.options.skip_first
        if not self.tokens_kept:
            raise AnalysisError(
                "No token is left to compare: "
                + ("position 0 does" if skipped == 1 else f"positions 0 to {skipped - 1} do")
                + " not count, and no prompt is longer; give longer ones, or -o skip_first=0."
            )
        self._compare(self._minibatches.rest())

    def tensors(self) -> dict[str, Any]:
        """All that is kept, after the end: sums of `hsic` by group of minibatches, each weighted by its tokens, and of
        the squared lengths of what is compared; sums by neighbours, of no token where widths differ; and counts.
        """
        counts = ("prompts", "tokens", "tokens_kept", "tokens_compared", "minibatches")
        found = [self.neighbours.get(pair, Neighbours()) for pair in pairwise(self.sites)]
        return {
            **widths.as_tensors(self.widths),
            "hsic": self._hsic[: self.minibatches],
            "squares": self._squares,
            "neighbours/tokens": torch.tensor([each.count for each in found]),
            "neighbours/cosines": torch.tensor([each.cosines for each in found], dtype=torch.float64),
            "neighbours/angles": torch.tensor([each.angles for each in found], dtype=torch.float64),
            **{name: torch.tensor(getattr(self, name)) for name in counts},
        }


class Neighbours:
    """Sums over tokens where neither is zero: the cosine of two sites' activations of one token, and their angle as a
    share of half a turn, `arccos(cos) / π`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.cosines = 0.0
        self.angles = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take in rows `[tokens, width]` of both."""
        first, second = in_double(before), in_double(after.to(before.device))
        lengths = first.norm(dim=1) * second.norm(dim=1)
        directed = lengths > 0
        cosines = ((first * second).sum(1)[directed] / lengths[directed]).clamp(-1, 1)
        self.count += len(cosines)
        self.cosines += float(cosines.sum())
        self.angles += float(cosines.arccos().sum()) / math.pi
