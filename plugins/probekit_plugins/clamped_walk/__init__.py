"""Clamped walk: noise on one part of the embedding, gradient descent on the other to take back what it changed.

Source: Sentence Representation with Language Models, section "Clamped Gradient Walk Representations".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

import probekit
from probekit_plugins.walks.options import SIDE_BY_SIDE, WalkOptions

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


def _listed(value: object) -> object:
    return [value] if isinstance(value, int) else value


class ClampedWalkOptions(WalkOptions):
    """Options of the clamped walk.

    The source page's code is `steps = 10, noise = 2e-4, inner = 31, learning_rate = 2e-5`; its formula is `noise_scale
    = "formula", shifted = "below"`.
    """

    noise: float | None = Field(
        None, gt=0, description="η of the noise; unset: relative_noise times the embedding matrix's standard deviation."
    )
    relative_noise: float = Field(
        0.05, gt=0, description="Without a noise: η over the standard deviation of the embedding matrix."
    )
    noise_scale: Literal["code", "formula"] = Field(
        "code", description="The noise is η·N(0, 1), as in the source page's code, or η·N(0, η), as in its formula."
    )
    shifted: Literal["above", "below"] = Field(
        "above",
        description="Which side of the index i gets the noise: [i:] as in the page's code, or [:i] as in its formula.",
    )
    inner: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_listed)] = Field(
        [1, 10], min_length=1, description="Gradient steps on the other side after each shift; several are compared."
    )
    learning_rate: float | None = Field(
        None, gt=0, description="ε; unset: chosen for each walker at its first step, see relative_rate."
    )
    relative_rate: float = Field(
        0.3, gt=0, description="Without a learning rate: the length of the first gradient step over that of the shift."
    )

    def noise_of(self, measured: Mapping[str, Any]) -> float:
        """η; where it is relative, `measured` has the standard deviation of the embedding matrix."""
        return self.noise or self.relative_noise * float(measured["embedding_std"].item())


class ClampedWalk(probekit.Analysis[ClampedWalkOptions]):
    """Shifts part of the embedding by noise, descends on the rest to restore the activation, and measures what is left.

    Each step draws an index i of the embedding's width, adds noise to `e[:, :, i:]`, and takes `inner` gradient steps
    `e[:, :, :i] −= ε ∇‖O_l(e) − t‖₁`. The control takes the same shifts and no gradient steps.
    """

    name = "clamped-walk"
    joint_report = SIDE_BY_SIDE

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.clamped_walk.strides import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.walks.figures import figured

        found = figured(result)
        found.metrics["noise"] = self.options.noise_of(result.tensors)
        return found

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.clamped_walk.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[ClampedWalkOptions]]]:
    return [ClampedWalk]
