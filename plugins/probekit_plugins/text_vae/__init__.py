"""Text autoencoders: a text as one vector z, and the text again from it, by copies of any causal LM.

Optimus (Li et al., 2020, arXiv 2004.04092) and T5 as a VAE (Park and Lee, 2021, arXiv 2108.02446): an encoder gives
`q(z | x)`, a decoder `p(x | z)` takes z as memory beside its keys and values, or added to its embeddings.
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

Beside = Literal["no-z", "lstm", "autoencoder", "collapsed"]
Injection = Literal["memory", "embedding", "both"]
# Weights and nats above this leave nothing of the other figures in single precision.
MOST = 1e6
Pooling = Literal["last", "first", "mean", "max"]


class TextVaeOptions(CorpusOptions):
    """Options of the text autoencoder. Every λ is trained with each seed, and so is what stands beside."""

    steps: int = Field(400, ge=1, description="Steps of each training; fewer if the seconds are spent before.")
    batch: int = Field(16, ge=2, description="Texts in a step.")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's learning rate η at its highest.")
    preset: Literal["optimus", "t5"] = Field(
        "optimus",
        description="What is unset of the following: 'optimus' (both injections, λ = 0.5, half of the steps without "
        "KL), or 't5' (memory, states pooled by their maximum, half of the steps a denoising autoencoder, λ = 3).",
    )
    latent: int = Field(32, ge=1, description="Width P of z.")
    injection: Injection | None = Field(
        None,
        description="How z enters the decoder: as 'memory', one more position beside the keys and values of each "
        "block; added to every 'embedding'; or 'both'.",
    )
    free_bits: Annotated[list[Annotated[float, Field(ge=0, le=MOST)]] | None, BeforeValidator(listed)] = Field(
        None, description="Free bits λ: nats of each dimension that cost nothing; each is trained."
    )
    beta: float = Field(1.0, ge=0, le=MOST, description="Weight β of the divergence from N(0, I) at its highest.")
    beta_zero: float = Field(0.0, ge=0, le=1, description="Share of phase 2 (of each cycle) in which β is zero.")
    beta_rise: float = Field(0.5, ge=0, le=1, description="Share in which β rises after that; then it is flat.")
    cycles: int = Field(1, ge=1, description="How often β goes through zero, rise and flat.")
    pretraining: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the steps that is phase 1, an autoencoder without KL; it is trained once for all λ.",
    )
    deletion: float | None = Field(
        None, ge=0, lt=1, description="Share of the encoder's tokens that is deleted in phase 1: denoising."
    )
    reset_decoder: bool = Field(
        False, description="Give the decoder its first weights again after phase 1 (Li et al., 2019)."
    )
    encoder: str | None = Field(
        None,
        min_length=1,
        description="A text encoder, the name or folder of any AutoModel; unset: a copy of the model itself.",
    )
    site: str | None = Field(
        None,
        min_length=1,
        description="Where a copy of the model is read as an encoder; unset: its final norm, or its last block.",
    )
    pooling: Pooling | None = Field(
        None,
        description="What of the encoder's states is read: the 'last' position, the 'first' ([CLS]), their 'mean' or "
        "'max'. Unset: last of a causal model, first of another, max of T5.",
    )
    seq2seq: str | None = Field(
        None,
        min_length=1,
        description="A T5 in place of copies of the model: a name or folder, or 't5:layers=2,width=64,heads=4' with "
        "random weights and the model's tokenizer.",
    )
    beside: Annotated[list[Beside], BeforeValidator(listed)] = Field(
        ["no-z", "collapsed"],
        description="What is trained beside: the decoder without z, an LSTM language model, an autoencoder without KL, "
        "and the control that must fail: β = 1 from the first step, without free bits.",
    )
    seeds: int = Field(1, ge=1, description="Trainings of each, from different weights and in different orders.")
    importance_samples: int = Field(32, ge=1, description="Samples S of z in the estimate of a text's likelihood.")
    examples: int = Field(4, ge=0, description="Reconstructions, samples, interpolations and analogies in the report.")
    interpolation_steps: int = Field(5, ge=2, description="Points of an interpolation, both ends among them.")

    @model_validator(mode="after")
    def _go_together(self) -> TextVaeOptions:
        if self.seq2seq is not None and self.encoder is not None:
            raise ValueError("seq2seq brings an encoder of its own; leave out encoder, or seq2seq")
        names = [f"{value:g}" for value in self.free_bits or ()]
        if again := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"free_bits has {again} twice, to six digits; give each once")
        if len(set(self.beside)) < len(self.beside):
            raise ValueError("beside has one of its entries twice; give each once")
        if self.free_bits == []:
            raise ValueError("free_bits is empty; give one λ at least (0 for none)")
        return self


class TextVae(probekit.Analysis[TextVaeOptions]):
    """Trains variational autoencoders of texts, and says what z is used for.

    `−ELBO = −E_q log p(x | z) + KL(q(z | x) ‖ N(0, I))`, importance-weighted PPL, mutual information beside its
    ceiling, active units, and `ΔRec = NLL(x | z of another text) − NLL(x | z)`, without which none of them says that z
    is used; reconstructions, samples from the prior, interpolations, analogies.
    """

    name = "text-vae"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.text_vae.run import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.text_vae.page import draw

        draw(result, page)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.text_vae.tables import fill

        fill(result, self.options)
        return result


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[TextVaeOptions]]]:
    return [TextVae]
