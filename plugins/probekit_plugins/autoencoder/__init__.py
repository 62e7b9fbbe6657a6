"""Autoencoders of activations: what a layer keeps, compressed.

One dataset, one trainer; a dense code (plain, variational, contrastive) or a sparse one (L1, TopK, BatchTopK,
JumpReLU), and what is left of the activations, of the model's predictions and of the prompt when it is decoded again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

import probekit
from probekit_plugins.listed import listed
from probekit_plugins.training_options import TrainingOptions

if TYPE_CHECKING:
    from probekit import ActivationBatch, Context, Page, Result
    from probekit_plugins.autoencoder.data import Data

Variant = Literal["plain", "l1", "topk", "batchtopk", "jumprelu", "variational", "contrastive"]
SPARSE = ("l1", "topk", "batchtopk", "jumprelu")


class AutoencoderOptions(TrainingOptions):
    """Options of the autoencoder. Every variant is trained at each of its sizes, and with each seed."""

    sites: probekit.Sites = Field("block.-1", description="Sites whose activations are encoded, each on its own.")
    variants: Annotated[list[Variant], BeforeValidator(listed)] = Field(
        ["plain"], min_length=1, description="Kinds of autoencoder; the sparse ones take the extra `sae`."
    )
    widths: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(listed)] = Field(
        [], description="Widths q of the codes that are not sparse; unset: 1/16, 1/8 and 1/4 of the activation's."
    )
    layers: Literal[1, 2] = Field(2, description="Layers of encoder and decoder: 1 is linear.")
    features: int | None = Field(
        None, ge=2, description="Features of a sparse code; unset: four times the activation's width."
    )
    active: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(listed)] = Field(
        [4, 16], min_length=1, description="TopK and BatchTopK: features k that are active at once."
    )
    penalties: Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(listed)] = Field(
        [0.3, 1.0, 3.0],
        min_length=1,
        description="L1 and JumpReLU: weight λ of the penalty, the activations scaled to a mean squared norm of d "
        "about their mean.",
    )
    noise_variance: float = Field(
        0.1, gt=0, description="Variational: σ² of an entry that is decoded, of activations scaled to variance 1."
    )
    beta: float = Field(1.0, ge=0, description="Variational: weight β of the divergence from N(0, I).")
    views: Literal["sites", "segments", "dropout"] = Field(
        "dropout",
        description="Contrastive: what is to be told apart from all else: a token at two sites, the halves of a "
        "document, or an activation under dropout.",
    )
    temperature: float = Field(0.1, gt=0, description="Contrastive: temperature τ.")
    dropout: float = Field(0.2, gt=0, lt=1, description="Contrastive: share of entries that a view loses.")
    labels: str | None = Field(
        None,
        min_length=1,
        description="Labels that clusters of codes are scored against, and contrastive views are made alike by: "
        "'token', 'position', 'document', or a file with a line for each prompt. Unset: none.",
    )
    seeds: int = Field(3, ge=1, description="Trainings of each, from different weights and in different orders.")
    text: str | None = Field(
        None, min_length=1, description="A UTF-8 file in place of the prompts, cut into pieces; each is a document."
    )
    length: int | None = Field(
        None, ge=2, description="Tokens of such a piece; unset: 64, or the model's context if that is shorter."
    )
    pieces: int = Field(
        512,
        ge=10,
        description="Pieces that the model writes itself where there is no text and are fewer than ten prompts.",
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the documents that figures are measured on.")
    held_out_tokens: int = Field(16384, ge=16, description="Most tokens that figures are measured on.")
    skip_first: int = Field(
        1, ge=0, description="Positions at the beginning of each prompt that are left out, since they are outliers."
    )
    buffer_memory: float = Field(
        1.0, gt=0, description="GiB for the activations to train on; of more, as many as fit are drawn."
    )
    splice_tokens: int = Field(
        2048, ge=0, description="Held-out tokens on which the model goes on with the reconstruction; 0: none."
    )
    invert: int = Field(
        0, ge=0, description="Held-out prompts that are recovered from the reconstruction, to see what survives."
    )
    invert_tokens: int = Field(12, ge=2, description="Tokens of such a prompt; longer ones are cut.")
    saved: Annotated[list[str], BeforeValidator(listed)] = Field(
        [], description="Folders of autoencoders that were trained before, by probekit or SAELens: measured as well."
    )

    @model_validator(mode="after")
    def _each_once(self) -> AutoencoderOptions:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError("each variant once")
        for name in ("widths", "active", "penalties"):
            # As they stand in a training's name, by which what is kept of it is found again.
            sizes = [f"{size:g}" for size in getattr(self, name)]
            if again := next((size for size in sizes if sizes.count(size) > 1), None):
                raise ValueError(f"{name} has {again} twice, to six digits; give each size once")
        return self


class Autoencoder(probekit.ActivationAnalysis[AutoencoderOptions]):
    """Trains autoencoders of activations, and says what is left when they are decoded again.

    `FVE = 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²` on documents that are held out, against PCA of the same width; what of the
    model's loss is recovered with x̂ spliced in at the site; and how many tokens of a prompt come back from it.
    """

    name = "autoencoder"

    def __init__(self, options: AutoencoderOptions, context: Context | None = None) -> None:
        super().__init__(options, context)
        self._data: Data | None = None

    def update(self, batch: ActivationBatch) -> None:
        from probekit_plugins.autoencoder.data import Data

        self._data = self._data or Data(self.options, self.context, batch.sites)
        self._data.add(batch)

    def finish(self) -> Result:
        from probekit_plugins.autoencoder.run import run

        data, self._data = self._data, None
        if data is None:
            raise probekit.AnalysisError("There are no activations to encode; give at least one prompt.")
        return run(data, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.autoencoder.page import draw

        draw(result, page, self.options)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.autoencoder.rows import fill

        fill(result, self.options)
        return result


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[AutoencoderOptions]]]:
    return [Autoencoder]
