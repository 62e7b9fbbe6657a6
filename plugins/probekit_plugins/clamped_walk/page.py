"""The clamped walk's page: what all walks show, and r against the number of inner steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probekit_plugins.walks.page import draw as draw_walk

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.clamped_walk import ClampedWalkOptions


def draw(result: Result, page: Page, options: ClampedWalkOptions) -> None:
    side, other = ("[i:]", "[:i]") if options.shifted == "above" else ("[:i]", "[i:]")
    rate = (
        f"ε = {options.learning_rate:g}"
        if options.learning_rate
        else f"ε such that a first full step is {options.relative_rate:g} times as long as a full shift"
    )
    noise = float(result.metrics["noise"] or 0)
    scale = f"{noise:.3g}·N(0, 1)" if options.noise_scale == "code" else f"{noise:.3g}·N(0, {noise:.3g})"
    control = " 'shifts alone' is the control: the same shifts and no gradient steps." if options.control else ""
    draw_walk(
        result,
        page,
        options,
        f"Each step draws an index i of the embedding's width, the same for all positions, adds noise {scale} to the "
        f"columns {side}, and takes gradient steps on the columns {other} to bring ‖O(e) − t‖₁ down again, with {rate}"
        f". 'inner 10' is the walk with ten such steps after each shift; all walks have the same shifts.{control}",
        lambda: _against_inner(result, page, options),
    )


def _against_inner(result: Result, page: Page, options: ClampedWalkOptions) -> None:
    """r against noise at the end, by the number of inner steps: one band for each site."""
    if len(set(options.inner)) < 2:
        return
    sites = list(dict.fromkeys(str(row["site"]) for row in result.tables["walkers"]))

    def points(site: str) -> list[tuple[Any, ...]]:
        found = []
        for inner in sorted(set(options.inner)):
            key = f"{site}/inner {inner}/r_over_noise_l2"
            values = [result.metrics[f"{key}_{of}"] for of in ("median", "min", "max")]
            if values[0] is not None:
                found.append((inner, *values))
        return found

    page.band(
        {site: points(site) for site in sites},
        x="inner gradient steps after each shift",
        y="r₂ over noise's",
        caption="r₂ over noise's at the end, by inner steps (median and range over prompts and walkers)",
        log_y=True,
    )
