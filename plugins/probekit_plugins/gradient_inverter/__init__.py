"""Gradient inverter: which input does a layer's activation come from?

Gradient descent on input embeddings until their activation matches the prompt's, then decoding of the embeddings to
tokens. Source: Sentence Representation with Language Models, equations 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


class GradientInverterOptions(probekit.Options):
    """Options of the gradient inverter.

    The defaults recover well on trained models; the source page's own settings are `optimizer = "descent"`,
    `learning_rate = 0.2` and `start_mean = 0.5, start_sigma = 0.05` in its text, `start_sigma = 1` in its author's
    code.
    """

    sites: probekit.Sites = Field(
        "block.0", description="Sites to invert, each on its own: 'block.3', 'blocks', 'logits', …"
    )
    head: Literal["none", "model", "without-norm"] = Field(
        "none",
        description="Put the model's head on the site: with its final norm, or without it as on the source page.",
    )
    loss: Literal["l1", "l2"] = Field("l1", description="Norm of O(e) − t that is minimised.")
    optimizer: Literal["adam", "descent"] = Field(
        "adam", description="Adam, or gradient descent as on the source page."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls, η → η/10 (linear, cosine), or stays."
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="η at the start; unset: a quarter of the embedding matrix's σ for Adam, 0.2 for descent.",
    )
    steps: int = Field(500, ge=1, description="N, the number of steps.")
    restarts: int = Field(8, ge=1, description="Independent random starts, computed as one batch.")
    start_mean: float = Field(0.0, description="Mean of the noise that a restart starts from.")
    start_sigma: float | None = Field(
        None, ge=0, description="Standard deviation of that noise; unset: that of the embedding matrix."
    )
    noise_share: float = Field(1.0, description="s in the start s·noise + t·e*.")
    target_share: float = Field(0.0, description="t in the start s·noise + t·e*; 0 starts without the answer.")
    shift_sigma: float = Field(
        0.05, gt=0, description="σ of the shifted input e′ = e* + N(0, σ) that m is measured with."
    )
    decoder: Literal["pseudo-inverse", "nearest", "cosine", "unembedding"] = Field(
        "pseudo-inverse", description="How embeddings are decoded to tokens."
    )
    top_k: int = Field(5, ge=1, description="Rows of candidate tokens to keep for each position.")
    record_every: int = Field(20, ge=1, description="Decode the embeddings at every so many steps.")


class GradientInverter(probekit.Analysis[GradientInverterOptions]):
    """Recovers the prompt from a layer's activation by gradient descent on the input embeddings.

    `e_{n+1} = e_n − η_n ∇‖O_l(e_n) − t‖` from random starts, with `t = O_l(e*)` the activation of the prompt; then
    the tokens are decoded from `e_N`. Every figure is a distribution over restarts.
    """

    name = "gradient-inverter"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.gradient_inverter.inversion import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.gradient_inverter.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[GradientInverterOptions]]]:
    return [GradientInverter]
