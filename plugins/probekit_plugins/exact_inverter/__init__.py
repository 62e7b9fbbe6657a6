"""Exact inverter: the prompt back from a layer's activations, token for token, with proof.

In a causal model the activation at position t is a function of the tokens up to t. Given the exact tokens before it,
the right token at t is the one whose activation is the given one: so tokens are proposed, and only those whose
activation matches are taken. Source: Nikolaou et al., Language Models are Injective and Hence Invertible, arXiv
2510.15511 (SIPIT); what is proposed, and how it is verified, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject

Rounding = Literal["none", "bf16", "fp16", "int8"]


class SearchOptions(probekit.Options):
    """How tokens are searched for: shared by the analyses that recover prompts."""

    tolerance: float | None = Field(
        None,
        gt=0,
        description="How far an activation may be from the given one to match, relative to its norm; unset: twice as "
        "far as the model is from itself in batches of other shapes, measured, plus what rounding and noise add.",
    )
    proposals: int = Field(
        1024, ge=1, description="Candidates of a position that are tried in the order of the regression."
    )
    gradient_steps: int = Field(
        48, ge=0, description="Steps of the gradient policy that follows, each with its nearest untried tokens."
    )
    scan: bool = Field(True, description="Then try all that is left of the vocabulary, so that the search is complete.")
    rivals: int | Literal["all"] = Field(
        8,
        description="Tokens that each recovered one is compared with afterwards, nearest first: its margin. 'all' "
        "compares with the whole vocabulary, which proves that no other token fits.",
    )
    combinations: int = Field(
        65536, ge=0, description="Combinations tried where unknown positions stand before a known one."
    )
    rows_at_once: int | None = Field(
        None, ge=1, description="Candidates, or prompts, in one batch; unset: 1024, halved while memory runs out."
    )

    @model_validator(mode="after")
    def _some_rivals(self) -> SearchOptions:
        if isinstance(self.rivals, int) and self.rivals < 0:
            raise ValueError("rivals at least 0, or 'all'")
        return self


class ExactInverterOptions(SearchOptions):
    """Options of the exact inverter."""

    sites: probekit.Sites = Field(
        "block.-1", description="Sites to recover the prompt from, each on its own: 'block.3', 'every-block', …"
    )
    activations: str | None = Field(
        None,
        min_length=1,
        description="A safetensors file of activations from elsewhere, at the one site given: tensors [T, w] or "
        "[B, T, w]. A position that is NaN is unknown. Unset: those of the prompts.",
    )
    positions: list[int] | Literal["all"] = Field(
        "all", description="Positions whose activation is known, from 0, or negative from the end."
    )
    rounding: Rounding = Field("none", description="Round the prompts' activations, as a store of them might.")
    noise: float = Field(
        0.0,
        ge=0,
        description="σ of normal noise, relative to the root mean square of each position's activation: added to the "
        "prompts' activations; of a file, what it is said to hold.",
    )
    through: str | None = Field(
        None,
        min_length=1,
        description="A folder of a saved autoencoder: invert what it makes of the activations, rather than these "
        "themselves. Noise and rounding come after it.",
    )


class ExactInverter(probekit.Analysis[ExactInverterOptions]):
    """Recovers the prompt from a layer's activations exactly, and proves it.

    `x_t = x` is verified if `‖O_l(x_<t, x)_t − a_t‖ ≤ ε_t` with every token before it verified, and no rival that was
    tried comes as near. Candidates come from a regression, then from a gradient, then from a scan of the vocabulary.
    """

    name = "exact-inverter"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.exact_inverter.inversion import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.exact_inverter.page import draw

        draw(result, page, self.options)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.exact_inverter.figures import figured

        return figured(result)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[ExactInverterOptions]]]:
    return [ExactInverter]
