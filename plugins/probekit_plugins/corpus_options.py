"""The options of analyses that are trained on whole texts: which, and how. No torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from probekit_plugins.training_options import TrainingOptions


class CorpusOptions(TrainingOptions):
    """Which texts something is trained on, and how it is trained."""

    texts: str | None = Field(
        None,
        min_length=1,
        description="A UTF-8 file with a text on each line (or JSON lines with a `text` each), or 'random': uniformly "
        "random tokens. Unset: the prompts if there are ten or more, else texts that the model writes itself.",
    )
    held_out_texts: str | None = Field(
        None, min_length=1, description="A file of texts to measure by; unset: a share of the others is held out."
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the texts that is held out.")
    measured: int = Field(500, ge=2, description="Most texts that figures are measured on.")
    length: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a text, longer ones are cut; unset: 64, or 32 if the model writes them itself, "
        "or what the context has room for.",
    )
    shortest: int | None = Field(
        None,
        ge=1,
        description="Texts that are drawn or that the model writes: fewest tokens; unset: all have as many as "
        "`length` says.",
    )
    pieces: int = Field(2000, ge=10, description="Texts that the model writes itself, or that are drawn at random.")

    @model_validator(mode="after")
    def _shortest_fits(self) -> CorpusOptions:
        if self.shortest is not None and self.length is not None and self.shortest > self.length:
            raise ValueError("`shortest` is at most `length`")
        return self
