"""The logit lens: what would the model predict if it stopped at layer k?

`p_k = softmax(unembedding(norm(a_k)))`, the model's own head on the activation of every site. Source: nostalgebraist,
interpreting GPT: the logit lens (2020). Its limits: Belrose et al., Eliciting Latent Predictions from Transformers with
the Tuned Lens (2023), arXiv 2303.08112.

What is needed to list the plugin, and nothing else: torch is imported when the analysis runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


# The row of the model itself, beside those of the sites.
MODEL = "the model"


class LogitLensOptions(probekit.Options):
    """Options of the logit lens."""

    sites: probekit.Sites = Field(
        "blocks", description="Sites to read; what is not as wide as the head reads at every token is left out."
    )
    top_k: int = Field(5, ge=1, description="Tokens to keep for each site and position, the most probable first.")
    norm: bool = Field(True, description="Apply the final norm before the head, as the model does at its end.")


class LogitLens(probekit.Analysis[LogitLensOptions]):
    """Reads every layer with the model's own head: its next token at each position, and how far that is from the end.

    `p_k = softmax(unembedding(norm(a_k)))` is compared with the model's own `p_final = softmax(logits)`, by the
    divergence `KL(p_final ‖ p_k)` in bits, and with the token that follows in the prompt, by its rank.
    """

    name = "logit-lens"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_logit_lens.result import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_logit_lens.figures import figured

        return figured(result, self.options)

    def report(self, result: Result, page: Page) -> None:
        from probekit_logit_lens.page import draw

        draw(result, page)


@probekit.hookimpl
def probekit_analyses() -> list[type[LogitLens]]:
    return [LogitLens]
