"""What is measured of all activations: sums, counts and extremes for each site, in memory that prompts do not add
to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins import widths
from probekit_plugins.activation_rows import finite_rows, in_double
from probekit_plugins.activation_statistics.histogram import Magnitudes
from probekit_plugins.activation_statistics.largest import Largest
from probekit_plugins.activation_statistics.moments import Covariance, Directions

if TYPE_CHECKING:
    from probekit import ActivationBatch
    from probekit_plugins.activation_statistics import ActivationStatisticsOptions


@dataclass(frozen=True)
class Rows:
    """The tokens of a batch, each `[tokens]` on the CPU: where they stand, and whether they count everywhere."""

    positions: torch.Tensor
    prompts: torch.Tensor
    tokens: torch.Tensor
    kept: torch.Tensor


class SiteStatistics:
    """What is kept of one site."""

    def __init__(self, width: int, options: ActivationStatisticsOptions, with_covariance: bool) -> None:
        self.width = width
        self.tokens = 0
        self.norm_sum = 0.0
        self.norm_max = 0.0
        self.norms = Magnitudes()
        self.norm_by_position = torch.zeros(options.positions, dtype=torch.float64)
        self.magnitudes = Magnitudes()
        self.largest = Largest(options.largest)
        self.largest_by_dimension = torch.zeros(width, dtype=torch.float64)
        self.tokens_above = torch.zeros(width, dtype=torch.long)
        self.directions = Directions(width)
        self.covariance = Covariance(width) if with_covariance else None
        self._bound = options.outlier_magnitude

    def add(self, activations: torch.Tensor, rows: Rows) -> None:
        """Take in activations `[tokens, width]`, which are finite."""
        values = in_double(activations)
        magnitudes = values.abs()
        norms = values.norm(dim=1)
        self.tokens += len(values)
        self.norms.add(norms)
        self.magnitudes.add(magnitudes)
        self.largest.add(values, rows.positions, rows.prompts, rows.tokens)
        self.largest_by_dimension = torch.maximum(self.largest_by_dimension, magnitudes.amax(0).cpu())
        self.tokens_above += (magnitudes >= self._bound).sum(0).cpu()
        kept = rows.kept.to(values.device)
        self.directions.add(values[kept], norms[kept])
        if self.covariance is not None:
            self.covariance.add(values[kept])
        norms = norms.cpu()
        self.norm_sum += float(norms.sum())
        self.norm_max = max(self.norm_max, float(norms.max()))
        early = rows.positions < len(self.norm_by_position)
        self.norm_by_position.index_add_(0, rows.positions[early], norms[early])


class Statistics:
    """What is kept of every site, and how it is saved."""

    def __init__(self, options: ActivationStatisticsOptions) -> None:
        self.options = options
        self.sites: dict[str, SiteStatistics] = {}
        self.prompts = 0
        self.tokens = 0
        self.tokens_kept = 0
        self.tokens_by_position = torch.zeros(options.positions, dtype=torch.long)
        self.token_texts: Callable[[Sequence[int]], list[str]] = lambda ids: [str(index) for index in ids]

    def add(self, batch: ActivationBatch) -> None:
        """Take in a batch. Raises AnalysisError, naming the site, for an activation that is not finite."""
        positions = batch.positions.cpu()
        rows = Rows(positions, batch.row_prompts.cpu(), batch.row_ids.cpu(), positions >= self.options.skip_first)
        if not self.sites:
            self._begin({site: finite_rows(batch, site).shape[1] for site in batch.sites})
        for site, statistics in self.sites.items():
            statistics.add(finite_rows(batch, site, statistics.width), rows)
        self.token_texts = batch.token_texts
        self.prompts += len(batch.prompts)
        self.tokens += len(positions)
        self.tokens_kept += int(rows.kept.sum())
        self.tokens_by_position += torch.bincount(positions, minlength=self.options.positions)[: self.options.positions]

    def _begin(self, widths: dict[str, int]) -> None:
        memory = self.options.covariance_memory * 2**30
        fitting = set(widths.values()) if memory else set()
        while sum(8 * width**2 for width in widths.values() if width in fitting) > memory:
            fitting.remove(max(fitting))
        self.sites = {site: SiteStatistics(width, self.options, width in fitting) for site, width in widths.items()}

    def measured(self) -> Result:
        """All of it, without figures."""
        result = Result()
        for site, found in self.sites.items():
            for name, counted in (("norms", found.norms), ("magnitudes", found.magnitudes)):
                result.tensors |= {f"{name}/{site}/{part}": tensor for part, tensor in counted.tensors().items()}
            result.tensors |= {f"largest/{site}/{part}": tensor for part, tensor in found.largest.tensors().items()}
            result.tensors[f"share_above/{site}"] = found.tokens_above.double() / found.tokens
            result.tensors[f"largest_by_dimension/{site}"] = found.largest_by_dimension
            if found.covariance is not None:
                result.tensors[f"covariance/{site}"] = found.covariance.tensor()
        every = self.sites.values()
        seen = int((self.tokens_by_position > 0).sum())
        counts = self.tokens_by_position[:seen]
        sums = torch.stack([found.norm_by_position[:seen] for found in every])
        result.tensors |= {
            **widths.as_tensors({site: found.width for site, found in self.sites.items()}),
            "norm_by_position": sums / counts,
            "tokens_by_position": counts,
            "norm_sum": torch.tensor([found.norm_sum for found in every], dtype=torch.float64),
            "norm_max": torch.tensor([found.norm_max for found in every], dtype=torch.float64),
            "directions": torch.tensor([found.directions.count for found in every]),
            "direction_squares": torch.tensor(
                [found.directions.squared_length() for found in every], dtype=torch.float64
            ),
            **{name: torch.tensor(getattr(self, name)) for name in ("prompts", "tokens", "tokens_kept")},
        }
        named = list(dict.fromkeys(torch.cat([found.largest.tensors()["places"][3] for found in every]).tolist()))
        result.sequences["vocabulary"] = [TokenSequence(named, self.token_texts(named))]
        return result
