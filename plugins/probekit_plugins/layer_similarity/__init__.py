"""Layer similarity: which layers hold the same representation?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import ActivationBatch, Context, Page, Result
    from probekit_plugins.layer_similarity.similarity import Similarity

# Tokens of which there is an unbiased estimate of HSIC.
LEAST_ROWS = 4


class LayerSimilarityOptions(probekit.Options):
    """Options of the layer similarity."""

    sites: probekit.Sites = Field("blocks", description="Sites that are compared, every one with every other.")
    minibatch: int = Field(
        256, ge=8, description="Tokens whose Gram matrices are compared at once: more are exacter, and cost more."
    )
    buffer_memory: float = Field(
        1.0,
        gt=0,
        description="GiB for the tokens that are collected, shuffled and dealt into minibatches, so that each "
        "holds tokens of many prompts.",
    )
    alike: float = Field(0.95, gt=0, le=1, description="CKA from which on two sites count as alike in the finding.")
    skip_first: int = Field(
        1,
        ge=0,
        description="Positions at the beginning of each prompt that do not count, since their outliers would decide "
        "alone.",
    )


class LayerSimilarity(probekit.ActivationAnalysis[LayerSimilarityOptions]):
    """Says which layers hold the same representation: CKA of every pair of sites, and the angle between neighbours.

    CKA `= HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))` by the unbiased minibatch estimator, over any number of prompts in
    memory that does not grow with them.
    """

    name = "layer-similarity"

    def __init__(self, options: LayerSimilarityOptions, context: Context | None = None) -> None:
        super().__init__(options, context)
        self._similarity: Similarity | None = None

    def update(self, batch: ActivationBatch) -> None:
        from probekit_plugins.layer_similarity.similarity import Similarity

        self._similarity = self._similarity or Similarity(self.options, self.context.generator("minibatches"))
        self._similarity.add(batch)

    def finish(self) -> Result:
        similarity, self._similarity = self._similarity, None
        if similarity is None:
            raise probekit.AnalysisError("There are no activations to compare; give at least one prompt.")
        similarity.end()
        return self.recompute(probekit.Result(tensors=similarity.tensors()))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.layer_similarity.summary import figured

        return figured(result, self.options)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.layer_similarity.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[LayerSimilarityOptions]]]:
    return [LayerSimilarity]
