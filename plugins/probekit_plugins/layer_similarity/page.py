"""The page of the layer similarity: every pair of sites, neighbours, and what to make of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.layer_similarity import LayerSimilarityOptions

Row = dict[str, Any]


def draw(result: Result, page: Page, options: LayerSimilarityOptions) -> None:
    sites = [str(row["site"]) for row in result.tables["sites"]]
    page.prose(
        "Two layers hold the same representation if tokens that lie close together, or far apart, in one do so in the "
        "other. Linear CKA (centred kernel alignment) says how far that holds: 1 if one layer's activations are the "
        "other's but for a rotation, a reflection or one common scale, about 0 if they have nothing to do with one "
        "another. Widths need not be equal."
    )
    _pairs(result, page, sites)
    _runs(result, page, options)
    _neighbours(result, page, sites)
    page.heading("What to do with it")
    page.prose(
        "A square of high values along the diagonal is a stretch of layers that change little: to probe, to invert "
        "or to audit one of them tells about the others, and if layers are to be pruned, these come first, those with "
        "the least angle before others. The edge between two squares is where the representation changes: look there "
        "with an analysis that costs more.\n\n"
        "Alike is not the same: CKA is decided by the directions in which activations vary most, so two layers that "
        "differ in weak directions, where much of what a model knows may be, are alike all the same. Whether a layer "
        "can be left out is told by the model's loss without it."
    )


def _pairs(result: Result, page: Page, sites: list[str]) -> None:
    found: dict[tuple[str, str], float | None] = {}
    for row in result.tables["pairs"]:
        found[str(row["site"]), str(row["other"])] = found[str(row["other"]), str(row["site"])] = _number(row["cka"])
    known = [value for value in found.values() if value is not None]
    if not known:
        return
    metrics = result.metrics
    missing = {site for site in sites if all(found[pair] is None for pair in found if site in pair)}
    for site in sites:
        found[site, site] = None if site in missing else 1.0
    page.heading("Every site with every other")
    low = min(0.9, math.floor(10 * min(known)) / 10)
    page.heatmap(
        [[found[site, other] for other in sites] for site in sites],
        x_labels=sites,
        y_labels=sites,
        x="site",
        y="site",
        value="CKA",
        caption="Linear CKA of every pair of sites: 1 is the same representation but for a rotation and a scale",
        domain=(low, 1.0),
    )
    error = metrics["cka_error_greatest"]
    page.prose(
        f"Of {metrics['tokens_compared']} tokens in {metrics['minibatches']} minibatches"
        + (
            f"; the standard error of a figure, against all these tokens at once, is at most {error:.2g}."
            if error is not None
            else "."
        )
    )


def _runs(result: Result, page: Page, options: LayerSimilarityOptions) -> None:
    rows = result.tables["runs"]
    if not rows:
        return
    page.table(
        ["from", "to", "sites", "least CKA"],
        [[row["first"], row["last"], row["sites"], row["least_cka"]] for row in rows],
        caption=f"Runs of neighbouring sites in which every pair has a CKA of at least {options.alike:g}",
        in_summary=True,
    )


def _neighbours(result: Result, page: Page, sites: list[str]) -> None:
    rows = result.tables["neighbours"]
    page.heading("From one site to the next")
    page.prose(
        "The angle says how far one layer turns a token's activation, as CKA does not: it sees rotations, and sees "
        "neither length nor the other tokens. A residual stream is a sum to which every layer adds, so a small angle "
        "means that the layer adds little beside what is there. Only sites of equal width have one, and it means "
        "something only where both write in one basis, such as blocks do."
    )
    if len(rows) > 1:
        series = {
            name: [(row["site"], _number(row[figure])) for row in rows]
            for name, figure in (("CKA", "cka"), ("mean cosine", "cosine"))
            if any(row[figure] is not None for row in rows)
        }
        page.lines(
            series,
            x="site",
            y="similarity to the site before",
            caption="How alike each site is to the one before it",
        )
    page.table(
        ["site", "after", "CKA", "mean cosine", "mean angle in degrees", "angular distance"],
        [
            [
                row["site"],
                row["before"],
                row["cka"],
                row["cosine"],
                None if row["angle"] is None else 180 * row["angle"],
                row["angle"],
            ]
            for row in rows
        ],
        caption="Each site and the one before it; the angular distance is the angle as a share of half a turn",
        in_summary=len(rows) <= 12,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
