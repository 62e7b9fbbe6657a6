"""Null-space walk: steps along the directions in which a layer's activation moves least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

import probekit
from probekit_plugins.walks.options import SIDE_BY_SIDE, WalkOptions

if TYPE_CHECKING:
    from probekit import Page, Prompt, Result, Subject


class NullSpaceWalkOptions(WalkOptions):
    """Options of the null-space walk."""

    step_size: float = Field(
        0.01, gt=0, description="η, the step's L2 length at each position (root mean square over positions)."
    )
    directions: int = Field(
        1, ge=1, description="q: steps stay in the span of the q directions with the smallest singular values."
    )
    iterations: int = Field(
        50, ge=1, description="Products with J and with Jᵀ to find these directions; more find smaller ones."
    )
    relinearise: int = Field(1, ge=1, description="Find the directions anew at every so many steps.")
    corrections: int = Field(1, ge=0, description="Gauss-Newton corrections back onto the level set after each step.")
    correction_iterations: int = Field(20, ge=1, description="Products with J and with Jᵀ for each correction.")
    damping: float = Field(
        0.01,
        ge=0,
        description="λ over the largest singular value: a correction leaves directions of smaller ones alone.",
    )


class NullSpaceWalk(probekit.Analysis[NullSpaceWalkOptions]):
    """Moves the input along the Jacobian's smallest singular directions, where the activation hardly notices.

    `J v ≈ σ_min v` at each point, found by Lanczos bidiagonalisation from products with `J = ∂O_l/∂e` and its
    transpose; then damped Gauss-Newton steps back onto `O_l(e) = t`. The control takes random directions of the same
    length.
    """

    name = "null-space-walk"
    joint_report = SIDE_BY_SIDE

    def run(self, subject: Subject, prompts: Sequence[Prompt]) -> Result:
        from probekit_plugins.null_space_walk.strides import run

        return self.recompute(run(subject, prompts, self.options, self.context))

    def recompute(self, result: Result) -> Result:
        from probekit_plugins.walks.figures import figured

        return figured(result)

    def report(self, result: Result, page: Page) -> None:
        from probekit_plugins.null_space_walk.page import draw

        draw(result, page, self.options)


@probekit.hookimpl
def probekit_analyses() -> list[type[probekit.Analysis[NullSpaceWalkOptions]]]:
    return [NullSpaceWalk]
