"""Pseudo-inverse decoder: which token does an embedding, or an activation, decode to?

`a = argmax_i [e (WᵀW)⁻¹ Wᵀ]_i`, beside the nearest, cosine and unembedding decoders; how safely every token of the
vocabulary decodes to itself; and the decoders as a lens over the blocks. Source: Sentence Representation with
Language Models, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject

DecoderName = Literal["pseudo-inverse", "nearest", "cosine", "unembedding"]


class PseudoInverseOptions(probekit.Options):
    """Options of the pseudo-inverse decoder."""

    decoders: list[DecoderName] = Field(
        ["pseudo-inverse", "nearest", "cosine", "unembedding"], min_length=1, description="Decoders to compare."
    )
    sites: probekit.Sites = Field(
        "embedding,blocks", description="Sites that the lens decodes; what is not d wide at every token is left out."
    )
    top_k: int = Field(5, ge=1, description="Candidates to keep for each position.")
    margins: bool = Field(True, description="Measure the margin of every token of the vocabulary (V² scores).")


class PseudoInverse(probekit.Analysis[PseudoInverseOptions]):
    """Decodes embeddings and activations to tokens, and measures how safely each token decodes to itself.

    The margin of token i is `h_ii − max_{j≠i} h_ij`, where `h_ij` is a decoder's score of token j for the embedding
    of token i; `h = W(WᵀW)⁻¹Wᵀ` for the pseudo-inverse. Token i round-trips if its margin is positive.
    """

    name = "pseudo-inverse"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.pseudo_inverse.measure import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.pseudo_inverse.page import draw

        draw(result, page)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.pseudo_inverse.figures import figured

        return figured(result, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[PseudoInverseOptions]]]:
    return [PseudoInverse]
