"""Control codes: what a text is taken for, and what is written, where a few words stand before it.

`p(x|c) = Π p(x_i | x_{<i}, c)`: likelihood of a text under each code, attribution to the likeliest, generation under a
code by penalised sampling, and fine-tuning of a copy of the model under codes. Source: CTRL, Keskar et al., arXiv
1909.05858.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

import probekit
from probekit_plugins.listed import listed
from probekit_plugins.training_options import TrainingOptions

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject

PenaltyForm = Literal["unpenalised", "corrected", "literal"]
Path = Annotated[str, Field(min_length=1)]
# Less or more of θ or T, and a logit that they divide or multiply is no figure any more.
LEAST, MOST = 1e-6, 1e6


def _as_text(fields: object) -> object:
    """Numbers among them as text, as in a file of codes."""
    if not isinstance(fields, dict):
        return fields
    return {name: str(each) if type(each) in (int, float) else each for name, each in fields.items()}


class ControlCodesOptions(TrainingOptions):
    """Options of the control codes."""

    codes: Path | None = Field(
        None, description="A TOML file of codes; unset: those of the paper, which come with probekit."
    )
    only: Annotated[list[str], BeforeValidator(listed)] = Field(
        [], description="Names of the codes that are used; unset: all of the file."
    )
    fields: Annotated[dict[str, str], BeforeValidator(_as_text)] = Field(
        {}, description='Fields of templates, in place of their defaults: {rating = "1.0"}.'
    )
    texts: dict[str, Path] = Field(
        {},
        description='Texts whose code is known, a UTF-8 file for each code: {Horror = "horror.txt"}, a text on each '
        "line (or JSON lines with a `text` each); beside those that the file of codes names.",
    )
    length: int = Field(64, ge=2, description="Most tokens of such a text, longer ones are cut.")
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of each code's texts that is not trained on, and so measured."
    )
    measured: int = Field(100, ge=1, description="Most texts of each code that figures are measured on.")
    new_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens to generate for each prompt under each code; unset: 48, or what the context has room for.",
    )
    penalty_form: Annotated[list[PenaltyForm], BeforeValidator(listed)] = Field(
        ["corrected", "unpenalised", "literal"],
        description="How tokens that were generated before are penalised, the first one shown first: x/θ if x > 0 "
        "else xθ, not at all, or x/θ as the paper prints it. An empty list leaves generation out.",
    )
    penalty: float = Field(1.2, ge=LEAST, le=MOST, description="θ.")
    temperature: float = Field(
        0.0, ge=0, le=MOST, description="T: 0 takes the likeliest token, 1 draws from the model's own distribution."
    )
    top_k: int = Field(0, ge=0, description="Draw among the k likeliest tokens; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw among the likeliest tokens that have this probability.")
    samples: int = Field(3, ge=1, description="Texts that are drawn for each prompt and code; with T = 0 there is one.")
    rows_at_once: int | None = Field(
        None, ge=1, description="Texts in one batch; unset: as many as fit, halved while memory runs out."
    )
    steps: int = Field(0, ge=0, description="Steps of fine-tuning a copy of the model under its codes; 0: none.")
    batch: int = Field(32, ge=2, description="Texts in a step.")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's learning rate η at its highest.")
    seeds: int = Field(3, ge=1, description="Fine-tunings, each with the texts in an order of its own.")
    control: bool = Field(
        True, description="Fine-tune as often with the codes shuffled among the texts: attribution must then fail."
    )
    save: bool = Field(False, description="Keep the fine-tuned model of the first seed, as a folder that loads.")

    @model_validator(mode="after")
    def _together(self) -> ControlCodesOptions:
        for name in ("only", "penalty_form"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"each of `{name}` once")
        if 0 < self.temperature < LEAST:
            raise ValueError(f"a `temperature` above 0 is at least {LEAST:g}; 0 takes the likeliest token")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("`top_k` and `top_p` say what is drawn among, so they need a `temperature` above 0")
        if self.save and not self.steps:
            raise ValueError("`save` keeps a fine-tuned model, so it needs `steps`")
        return self


class ControlCodes(probekit.Analysis[ControlCodesOptions]):
    """How likely a text is under each control code, which code it is attributed to, and what is written under each.

    `−(1/n) Σ log p(x_i | x_{<i}, c)` over the text's own tokens, in nats, for a code c that stands before the text;
    attribution is `argmin_c PPL(x|c)`.
    """

    name = "control-codes"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.control_codes.run import run

        return run(subject, prompts, self.options, self.context)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.control_codes.page import draw

        draw(result, page, self.options)

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.control_codes.summary import summarise

        summarise(result, self.options)
        return result


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[ControlCodesOptions]]]:
    return [ControlCodes]
