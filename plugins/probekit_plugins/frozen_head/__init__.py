"""Frozen head: does a model of this architecture train better if its head stays as it was drawn?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


class FrozenHeadOptions(probekit.Options):
    """Options of the frozen head."""

    steps: int = Field(200, ge=1, description="Steps of training in each arm.")
    batch: int = Field(8, ge=1, description="Pieces of text in a step.")
    length: int | None = Field(
        None, ge=2, description="Tokens of a piece of text; unset: 64, or the model's context if that is shorter."
    )
    learning_rate: float = Field(1e-3, gt=0, description="AdamW's learning rate η, the same in both arms.")
    warmup: float = Field(
        0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises to η; it is constant then."
    )
    head_scale: float = Field(
        1.0, gt=0, description="Factor on the head's random weights in both arms; the class's own are often small."
    )
    initialisations: int = Field(3, ge=1, description="Random starts; each is trained in both arms.")
    text: str | None = Field(
        None, description="A UTF-8 file to train on, its last tenth held out; unset: text that the model writes itself."
    )
    pieces: int = Field(512, ge=10, description="Pieces that the model writes itself where no text is given.")


class FrozenHead(probekit.Analysis[FrozenHeadOptions]):
    """Trains fresh models of the subject's architecture with a trained and with a frozen head, and compares them.

    Held-out loss, and by layer and phase of the training `‖∇‖`, `‖∇‖ / ‖W‖` and `‖W_end − W_start‖ / ‖W_start‖`.
    """

    name = "frozen-head"

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.frozen_head.measure import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.frozen_head.summary import figured

        return figured(result, self.options)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.frozen_head.page import draw

        draw(result, page)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[FrozenHeadOptions]]]:
    return [FrozenHead]
