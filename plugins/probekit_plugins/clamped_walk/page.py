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
    draw_walk(
        result,
        page,
        options,
        f"Each step draws an index i of the embedding's width, the same for all positions, adds noise {scale} to the "
        f"columns {side}, and takes gradient steps on the columns {other} to bring ‖O(e) − t‖₁ down again, with {rate}"
        ". 'inner 10' is the walk with ten such steps after each shift; all walks have the same shifts.",
        lambda: _against_inner(result, page, options),
    )


def _against_inner(result: Result, page: Page, options: ClampedWalkOptions) -> None:
    """r and r against noise at the end, by the number of inner steps: one band for each site."""
    if len(set(options.inner)) < 2:
        return
    sites = list(dict.fromkeys(str(row["site"]) for row in result.tables["walkers"]))
    captions = {
        "r_l1": ("r at the end, L1", "r₁ at the end against inner gradient steps"),
        "r_l2": ("r at the end, L2", "r₂ at the end against inner gradient steps"),
        "r_over_noise_l2": ("r / r of noise, L2", "r₂ over that of noise, at the end, against inner gradient steps"),
    }

    def points(site: str, figure: str) -> list[tuple[Any, ...]]:
        found = []
        for inner in sorted(set(options.inner)):
            values = [result.metrics[f"{site}/inner {inner}/{figure}_{of}"] for of in ("median", "min", "max")]
            if values[0] is not None:
                found.append((inner, *values))
        return found

    for figure, (title, caption) in captions.items():
        page.band(
            {site: points(site, figure) for site in sites},
            x="inner steps",
            y=title,
            caption=f"{caption}: median and range over prompts and walkers",
            log_y=True,
        )
