"""Gradient inverter: which input does a layer's activation come from?

Gradient descent on input embeddings until their activation matches the prompt's, then decoding of the embeddings to
tokens. Source: Sentence Representation with Language Models, equations 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

import probekit
from probekit_plugins.gradient_inverter.settings import completed

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


def _listed(value: object) -> object:
    return [value] if isinstance(value, int | float) else value


class GradientInverterOptions(probekit.Options):
    """Options of the gradient inverter.

    The defaults recover well on trained models, in seconds. `settings = "strong"` recovers best, and compares itself
    with the source page's own settings: those of its text (its author's code has `start_mean = 0, start_sigma = 1`).
    """

    settings: Literal["default", "strong", "page"] = Field(
        "default",
        description="What the options that are not given are: as below; 'strong': start=regression, loss=l2, "
        "embedding_box, rescore=32 and compare_page; 'page': those of the source page's text.",
    )

    sites: probekit.Sites = Field("block.0", description="Sites to invert, each on its own: 'block.3', 'blocks', …")
    head: Literal["none", "model", "without-norm"] = Field(
        "none", description="Put the model's head on the site: with its final norm, or without as on the source page."
    )
    loss: Literal["l1", "l2", "cosine", "mixed"] = Field(
        "l1", description="Distance of O(e) from t that is minimised; 'mixed' is α(1 − cos φ) + β·L1."
    )
    alpha: float = Field(1.0, ge=0, description="α of the mixed loss.")
    beta: float = Field(1.0, ge=0, description="β of the mixed loss.")
    optimizer: Literal["adam", "descent", "lbfgs"] = Field(
        "adam",
        description="Adam, gradient descent as on the source page, or L-BFGS with a line search for each restart.",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls, η → η/10 (linear, cosine), or stays."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="η at the start; unset: a quarter of the embeddings' σ for Adam, 0.2 descent, 1 L-BFGS."
    )
    steps: int = Field(500, ge=1, description="N, the number of steps.")
    restarts: int = Field(8, ge=1, description="Independent random starts, computed as one batch.")
    start: Literal["noise", "regression"] = Field(
        "noise",
        description="Where restarts begin: at noise, or at the embeddings that a regression learnt on the model's own "
        "outputs expects at each activation, the first restart exactly there and the others with noise around it.",
    )
    start_mean: float = Field(0.0, description="Mean of the noise that a restart starts from.")
    start_sigma: float | None = Field(
        None,
        ge=0,
        description="Standard deviation of that noise; unset: that of the embedding matrix, a quarter of it around a "
        "regression.",
    )
    noise_share: float = Field(1.0, description="s in the start s·noise + t·e*.")
    target_share: float = Field(0.0, description="t in the start s·noise + t·e*; 0 starts without the answer.")
    input_space: Literal["embedding", "vocabulary-linear", "vocabulary-softmax"] = Field(
        "embedding",
        description="What is optimised: e itself, x in e = xW, or x in e = softmax(x)W, with x as wide as V.",
    )
    vocabulary: list[int] | Literal["all", "prompts"] = Field(
        "all", description="Tokens that may be found: all, a list of ids, or those of the run's prompts (a control)."
    )
    target_positions: list[int] | Literal["all"] = Field(
        "all", description="Positions whose activation is matched, from 0, or negative from the end."
    )
    through: str | None = Field(
        None,
        min_length=1,
        description="A folder of a saved autoencoder: invert what it makes of the activation, rather than this itself. "
        "The head, if there is one, follows it.",
    )
    nearest_pull: float = Field(0.0, ge=0, description="Weight of the prior Σ‖e − nearest row of W‖² in the gradient.")
    embedding_box: bool = Field(False, description="Keep e within the least and the greatest entry of W, by dimension.")
    dropout: bool = Field(
        False, description="Compute target and steps with dropout on, as a freshly constructed model does."
    )
    shift_sigma: Annotated[list[float], BeforeValidator(_listed)] = Field(
        [0.05], min_length=1, description="σ of the shifted inputs e′ = e* + N(0, σ); m is measured with the first."
    )
    decoder: Literal["pseudo-inverse", "nearest", "cosine", "unembedding"] = Field(
        "nearest", description="How embeddings are decoded to tokens; the source page's is pseudo-inverse."
    )
    rescore: int = Field(
        0,
        ge=0,
        description="So many candidates of each position are told apart by forward passes of the tokens themselves, "
        "from the left; 0: none.",
    )
    compare_page: bool = Field(
        False,
        description="Invert the same targets with the source page's own settings too, in as many steps, and show both.",
    )
    top_k: int = Field(5, ge=1, description="Rows of candidate tokens to keep for each position.")
    record_every: int = Field(20, ge=1, description="Decode the embeddings at every so many steps.")
    next_token: bool = Field(
        True, description="Also ask whether the whole model's next token stays the prompt's (runs every block)."
    )
    next_token_model: str | None = Field(
        None,
        min_length=1,
        description="Ask this model instead of the inverted one for the next token, for networks without a head; it "
        "must have the same vocabulary.",
    )
    frequencies: str | None = Field(
        None, min_length=1, description="A UTF-8 file of text in which the found tokens' frequencies are counted."
    )
    share_pass: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Take the rows of all sites through the blocks in one pass a step, each as far as its site: where "
        "that is faster (several blocks, at most 64 tokens at each, on a CPU), always, or one site after another.",
    )
    rows_at_once: int | None = Field(
        None, ge=1, description="Restarts × prompts in one batch; unset: all, halved while memory runs out."
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return completed(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _regression_has_what_it_needs(self) -> Self:
        if self.start != "regression":
            return self
        if self.head != "none":
            raise ValueError("start=regression goes from the site's own activation, so leave out the head")
        if self.input_space != "embedding":
            raise ValueError("start=regression finds embeddings, so it goes with input_space=embedding")
        for name in ("start_mean", "noise_share", "target_share"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"start=regression takes the place of s·noise + t·e*, so leave out {name}")
        return self

    @model_validator(mode="after")
    def _box_is_of_embeddings(self) -> Self:
        if self.embedding_box and self.input_space != "embedding":
            raise ValueError("the embedding box goes with input_space=embedding: elsewhere e is not what is optimised")
        return self

    @model_validator(mode="after")
    def _through_without_dropout(self) -> Self:
        if self.through is not None and self.dropout:
            raise ValueError("an autoencoder knows activations without dropout, so leave out through or dropout")
        return self

    @model_validator(mode="after")
    def _somebody_asks(self) -> Self:
        if self.next_token_model is not None and not self.next_token:
            raise ValueError("a next_token_model is asked for next tokens only, so leave out next_token=false")
        return self


class GradientInverter(probekit.Analysis[GradientInverterOptions]):
    """Recovers the prompt from a layer's activation by gradient descent on the input embeddings.

    `e_{n+1} = e_n − η_n ∇‖O_l(e_n) − t‖` from random starts, with `t = O_l(e*)` the activation of the prompt; then the
    tokens are decoded from `e_N`. Every figure is a distribution over restarts.
    """

    name = "gradient-inverter"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.gradient_inverter.run import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.gradient_inverter.page import draw

        draw(result, page, self.options)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.gradient_inverter.figures import figured

        return figured(result, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[GradientInverterOptions]]]:
    return [GradientInverter]
