"""Orthogonal walk: steps orthogonal to the gradient of a layer's summed activation.

Source: Sentence Representation with Language Models, section "Orthogonal Walk Representations".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probekit
from probekit_plugins.walks.options import SIDE_BY_SIDE, WalkOptions

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject

GRADIENT_COLUMNS = ("site", "prompt", "way", "difference", "relative_difference", "gradient_rms", "outputs")


class OrthogonalWalkOptions(WalkOptions):
    """Options of the orthogonal walk; the source page's code is `direction = "svd-last"`, its formula `"svd-first"`."""

    step_size: float = Field(0.01, gt=0, description="η, the L2 length of the step at each position.")
    direction: Literal["projected", "svd-first", "svd-last", "svd-random"] = Field(
        "projected",
        description="A random vector projected off the gradient's rows (QR), or a row of Vᴴ past the sequence length.",
    )
    broadcast: bool = Field(
        True, description="Move all positions along one vector; else each along a vector of its own."
    )
    gradient_check: bool = Field(
        False,
        description="Also compute g output by output and by a backward pass of ones, and compare (slow).",
    )


class OrthogonalWalk(probekit.Analysis[OrthogonalWalkOptions]):
    """Moves the input orthogonally to the gradient of the summed activation, which should not change it, and measures.

    `e_{n+1} = e_n + η v` with `g v = 0` for `g = ∇_e Σ O_l(e_n)`, of shape sequence × d. The control takes random
    directions of the same length.
    """

    name = "orthogonal-walk"
    joint_report = SIDE_BY_SIDE

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.orthogonal_walk.strides import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.orthogonal_walk.differences import gradients
        from probekit_plugins.walks.figures import figured

        found = figured(result)
        if self.options.gradient_check:
            found.tables["gradients"] = gradients(result)
        return found

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.walks.page import draw

        control = " 'random' is the control: random directions of the same length." if self.options.control else ""
        draw(
            result,
            page,
            self.options,
            f"Each step goes η = {self.options.step_size:g} along a unit vector v that is orthogonal to every row of "
            "g = ∇ΣO, the gradient of the summed activation. That keeps the sum as it is to first order, and only the "
            f"sum: the activation has as many other entries to change.{control}",
            lambda: _draw_gradients(result, page),
            orthogonal=True,
        )


def _draw_gradients(result: Result, page: Page) -> None:
    rows = result.tables.get("gradients", [])
    if rows:
        page.table(
            ["site", "prompt", "against", "greatest difference", "over the greatest entry of g", "rms of g", "outputs"],
            [[row[name] for name in GRADIENT_COLUMNS] for row in rows],
            caption="g = ∇ΣO against the sum of every output's own gradient, and against a backward pass of ones",
        )


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[OrthogonalWalkOptions]]]:
    return [OrthogonalWalk]
