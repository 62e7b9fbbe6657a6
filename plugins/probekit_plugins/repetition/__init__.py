"""Repetition: how much do token sequences repeat themselves?

Decoded representations, text that the model generates by several strategies, and given text, each beside uniformly
random tokens of the same length; and a short unlikelihood fine-tuning of a copy of the model. Sources: Welleck et al.,
arXiv 1908.04319; Su et al., 2202.06417; Li et al., 1510.03055; Zhu et al., 1802.01886; Keskar et al., 1909.05858.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject

StrategyName = Literal["greedy", "temperature", "top-k", "nucleus", "beam", "contrastive", "ctrl", "ctrl-literal"]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


def _positive(windows: list[int]) -> list[int]:
    if any(window < 1 for window in windows):
        raise ValueError("windows of at least 1 token")
    return windows


class RepetitionOptions(probekit.Options):
    """Options of the repetition analysis."""

    source: Annotated[list[str], BeforeValidator(_listed)] = Field(
        [], description="Saved runs whose token sequences are measured and compared, beside those of this run."
    )
    text: str | None = Field(None, description="A UTF-8 file of given text, cut into pieces.")
    text_length: int | None = Field(
        None, ge=2, description="Tokens of a piece of text; unset: the model's context, at most 256."
    )
    text_pieces: int = Field(64, ge=1, description="Pieces of the text that are measured, evenly spread over it.")
    windows: Annotated[list[int], BeforeValidator(_listed), AfterValidator(_positive)] = Field(
        [16, 32, 128], description="l of rep/l and wrep/l, in tokens; none leaves them out."
    )
    random_draws: int = Field(20, ge=1, description="Draws of random tokens that each figure is compared with.")
    drop_last: bool = Field(
        False, description="Leave out the last n-gram of each sequence for n ≥ 2, as SimCTG's released code does."
    )
    distinct_over: Literal["tokens", "ngrams"] = Field(
        "tokens", description="What distinct-n is divided by: tokens as published, or n-grams."
    )
    strategies: Annotated[list[StrategyName], BeforeValidator(_listed)] = Field(
        ["greedy", "temperature", "top-k", "nucleus", "beam", "contrastive", "ctrl", "ctrl-literal"],
        description="How the model continues the prompts; none switches generation off.",
    )
    new_tokens: int = Field(64, ge=1, description="Tokens to generate for each prompt; none of them ends the text.")
    samples: int = Field(8, ge=1, description="Continuations of each prompt by the strategies that sample.")
    temperature: float = Field(1.0, gt=0, description="T of the strategy 'temperature'.")
    top_k: int = Field(50, ge=1, description="k of the strategy 'top-k'.")
    top_p: float = Field(0.95, gt=0, le=1, description="Probability mass p of the strategy 'nucleus'.")
    beams: int = Field(5, ge=2, description="B of the strategy 'beam'.")
    contrastive_k: int = Field(5, ge=1, description="k candidates of the strategy 'contrastive'.")
    contrastive_alpha: float = Field(0.6, ge=0, le=1, description="α of the strategy 'contrastive'.")
    penalty: float = Field(1.2, gt=0, description="θ of the strategies 'ctrl' and 'ctrl-literal'.")
    ctrl_temperature: float = Field(0.0, ge=0, description="T of those two; 0 takes the best token, as CTRL does.")
    rows_at_once: int | None = Field(
        None, ge=1, description="Continuations of a prompt in one batch; unset: all, halved while memory runs out."
    )
    unlikelihood_steps: int = Field(
        0, ge=0, description="Steps of unlikelihood fine-tuning of a copy of the model; 0 leaves it out."
    )
    unlikelihood_alpha: float = Field(1.0, gt=0, description="α in its loss MLE + α·unlikelihood.")
    unlikelihood_learning_rate: float = Field(1e-4, gt=0, description="AdamW's learning rate η.")
    unlikelihood_batch: int = Field(8, ge=1, description="Pieces of text in a step.")
    unlikelihood_pieces: int = Field(
        64, ge=2, description="Pieces that the model writes itself to be tuned on where no text is given."
    )


class Repetition(probekit.Analysis[RepetitionOptions]):
    """Measures how much decoded representations, generated and given text repeat themselves.

    `seq-rep-n = 1 − unique n-grams / n-grams` and its kin, beside the same figure for uniformly random tokens of the
    same length: a short sequence repeats little by itself.
    """

    name = "repetition"
    consumes = ("token-sequences",)

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.repetition.measure import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.repetition.outcome import figured

        return figured(result, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.repetition.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[RepetitionOptions]]]:
    return [Repetition]
