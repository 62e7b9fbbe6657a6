"""The null-space walk's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit_plugins.walks.page import draw as draw_walk

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.null_space_walk import NullSpaceWalkOptions


def draw(result: Result, page: Page, options: NullSpaceWalkOptions) -> None:
    corrected = (
        f"followed by {options.corrections} Gauss-Newton correction{'s' if options.corrections > 1 else ''} back "
        f"towards O(e) = t, damped at {options.damping:g} of the largest singular value"
        if options.corrections
        else "without a correction"
    )
    span = "direction" if options.directions == 1 else f"{options.directions} directions"
    control = " 'random' is the control: random directions of the same length." if options.control else ""
    draw_walk(
        result,
        page,
        options,
        f"Each step goes η = {options.step_size:g} for each position along the {span} of the smallest singular value "
        f"of the Jacobian J = ∂O/∂e, found by {options.iterations} products with J and its transpose, {corrected}."
        f"{control}",
    )
