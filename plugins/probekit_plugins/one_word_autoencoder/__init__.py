"""One-word autoencoder: a whole text in one input embedding, and out of it again.

A model encodes a text into one vector, or a few, and decodes it back token by token (Generative Language Autoencoders,
Zhang et al., 2024, a paper without experiments; these are some).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

import probekit
from probekit_plugins.corpus_options import CorpusOptions
from probekit_plugins.listed import listed

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject

Repulsion = Literal["none", "info-nce", "coding-rate", "coding-rate-as-printed"]


class OneWordAutoencoderOptions(CorpusOptions):
    """Options of the one-word autoencoder. Each number of vectors is trained with each repulsion and each seed."""

    vectors: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(listed)] = Field(
        [1], min_length=1, description="Vectors k that a text is encoded into: one, or several numbers to compare."
    )
    repulsion: Annotated[list[Repulsion], BeforeValidator(listed)] = Field(
        ["none"],
        min_length=1,
        description="What drives the vectors of different texts apart: nothing, the denominator of InfoNCE, or the "
        "coding rate, which is made large; 'coding-rate-as-printed' makes it small, as the source's equation 1 says, "
        "and fails.",
    )
    repulsion_weight: float = Field(1.0, gt=0, description="Weight of the repulsion beside the reconstruction.")
    temperature: float = Field(0.1, gt=0, description="InfoNCE: temperature τ.")
    distortion: float = Field(0.5, gt=0, description="Coding rate: the squared distortion ε².")
    losses: Literal["summed", "alternated"] = Field(
        "summed", description="Both losses in each step, or the reconstruction and the repulsion in turn."
    )
    site: str | None = Field(
        None, description="Where a vector is read; unset: block.-2, or the only block of a model that has one."
    )
    training: Literal["full", "lora"] = Field(
        "full",
        description="One copy of the model that encodes and decodes, trained in full; or adapters in the copy that "
        "encodes, and the model as it is decodes ('lora', which takes the extra `lora`).",
    )
    rank: int = Field(8, ge=1, description="LoRA: rank r of an adapter.")
    alpha: float = Field(16.0, gt=0, description="LoRA: α; an adapter's output is scaled by α/r.")
    prompts: Literal["none", "source"] = Field(
        "none", description="Words around texts and vectors: none, or the source's. These take a tokenizer."
    )
    segment: int | None = Field(
        None,
        ge=1,
        description="Iterative: tokens of a segment, E_t = Embed(E_{t−1}, segment_t); unset: the text is one.",
    )
    update: Literal["gate", "replace"] = Field(
        "gate", description="Iterative: a new vector is mixed with the one before by a gate, or takes its place."
    )
    decoded: Literal["each", "last"] = Field(
        "each", description="Iterative: what was read is decoded after each segment, or after the last."
    )
    truncate: int | None = Field(
        None, ge=1, description="Iterative: gradients go back through so many segments; unset: through all."
    )
    continuation: float = Field(
        1.0,
        ge=0,
        description="Iterative: weight of the next segment's loss, given the vectors before it; 0: none.",
    )
    seeds: int = Field(2, ge=1, description="Trainings of each, from different weights and in different orders.")
    shown: int = Field(12, ge=1, description="Held-out texts that the report shows beside their reconstructions.")

    # Short texts, many and different ones: of few, a training would learn these and not how to encode.
    length: int | None = Field(
        6, ge=1, description="Most tokens of a text, longer ones are cut; null: 64, or what the context has room for."
    )
    shortest: int | None = Field(
        2, ge=1, description="Texts that are drawn or that the model writes: fewest tokens; null: all are as long."
    )
    pieces: int = Field(9600, ge=10, description="Texts that the model writes itself, or that are drawn at random.")
    steps: int = Field(300, ge=1, description="Steps of training; fewer if the seconds are spent before.")
    batch: int = Field(32, ge=2, description="Texts in a step.")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate η at its highest.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up: to 0, or not at all."
    )
    measured: int = Field(200, ge=2, description="Most texts that figures are measured on.")

    @model_validator(mode="after")
    def _each_once(self) -> OneWordAutoencoderOptions:
        if len(set(self.vectors)) < len(self.vectors) or len(set(self.repulsion)) < len(self.repulsion):
            raise ValueError("each number of vectors once, and each repulsion once")
        return self


class OneWordAutoencoder(probekit.Analysis[OneWordAutoencoderOptions]):
    """Encodes whole texts into one input embedding and decodes them again, and counts how many come back exactly.

    `L = −(1/N) Σ log p(text_i | E, text_{<i})`, with a repulsion between the vectors E of different texts, and
    iteratively `E_t = Embed(E_{t−1}, segment_t)`.
    """

    name = "one-word-autoencoder"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.one_word_autoencoder.run import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.one_word_autoencoder.page import draw

        draw(result, page, self.options)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.one_word_autoencoder.tables import fill

        fill(result, self.options)
        return result


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[OneWordAutoencoderOptions]]]:
    return [OneWordAutoencoder]
