"""Activation statistics: how large are activations, where are the outliers, and how many dimensions do they use?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import ActivationBatch, Context, Page, Result
    from probekit_plugins.activation_statistics.statistics import Statistics


class ActivationStatisticsOptions(probekit.Options):
    """Options of the activation statistics."""

    sites: probekit.Sites = Field("blocks", description="Sites whose activations are measured.")
    positions: int = Field(32, ge=1, description="How many positions, from the first, have a norm of their own.")
    largest: int = Field(10, ge=1, description="How many of a site's largest figures are kept, with where they stand.")
    outlier_magnitude: float = Field(
        6.0, gt=0, description="From which magnitude on a figure makes its dimension an outlier feature…"
    )
    outlier_share: float = Field(0.06, gt=0, le=1, description="… if at least this share of the tokens have it.")
    skip_first: int = Field(
        1,
        ge=0,
        description="Positions at the beginning of each prompt that do not count for the effective dimension and the "
        "mean cosine, which their outliers would decide alone.",
    )
    covariance_memory: float = Field(
        4.0,
        ge=0,
        description="GiB for the covariances behind the effective dimension, which take 8·width² bytes a site: the "
        "widest sites are left out until the others fit, and with 0 all.",
    )


class ActivationStatistics(probekit.ActivationAnalysis[ActivationStatisticsOptions]):
    """Says how large each site's activations are, where the outliers stand, and how many dimensions are used.

    Norms by token and by position, the largest figures, outlier features, the participation ratio
    `tr(C)² / ‖C‖_F²` of the covariance and the mean cosine of two tokens, over any number of prompts in memory that
    does not grow with them.
    """

    name = "activation-statistics"

    def __init__(self, options: ActivationStatisticsOptions, context: Context | None = None) -> None:
        super().__init__(options, context)
        self._statistics: Statistics | None = None

    def update(self, batch: ActivationBatch) -> None:
        from probekit_plugins.activation_statistics.statistics import Statistics

        self._statistics = self._statistics or Statistics(self.options)
        self._statistics.add(batch)

    def finish(self) -> Result:
        statistics, self._statistics = self._statistics, None
        if statistics is None:
            raise probekit.AnalysisError("There are no activations to measure; give at least one prompt.")
        return self.recompute(statistics.measured())

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.activation_statistics.summary import figured

        return figured(result, self.options)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.activation_statistics.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[ActivationStatisticsOptions]]]:
    return [ActivationStatistics]
