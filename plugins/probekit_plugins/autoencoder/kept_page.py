"""What is kept of the activations: the variance explained, beside PCA and beside a control that must fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.page_figures import (
    LINES,
    Row,
    by_size,
    charted,
    is_sparse,
    line_of,
    named,
    number,
    over_seeds,
    points,
    principal,
    range_of,
    reference,
    rounded,
    settings_table,
    sites_of,
    size_of,
    some,
    spread,
)

if TYPE_CHECKING:
    from probekit import Page, Result

Band = tuple[object, float | None, float | None, float | None]


def draw_kept(result: Result, page: Page) -> None:
    """A table of the settings that decode, FVE by width of those that are dense, and the frontier of the sparse."""
    rows = [row for row in result.tables.get("settings", []) if row["variant"] != "contrastive"]
    if not rows:
        return
    page.heading("What is kept")
    page.prose(
        "The fraction of variance explained, FVE = 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², is 1 if every activation x comes back as "
        "it was, and 0 if x̂ is no nearer to x than the mean activation x̄ is. Two figures stand beside it. PCA is the "
        "best code that a linear map can make without any training, with as many numbers; what is above it is owed to "
        "the autoencoder. The control must fail: x̂ is decoded from the code of another token. It is at or below 0 "
        "if it is the code that tells tokens apart."
    )
    beyond = any(row.get(name) is not None for row in rows for name in ("loss_recovered", "tokens_survived"))
    settings_table(
        page,
        rows,
        {
            "numbers kept": [spread(row, "l0" if is_sparse(row) else "code", ".3g") for row in rows],
            "FVE": [spread(row, "fve") for row in rows],
            "PCA's FVE": [rounded(row.get("pca")) for row in rows],
            "control, at most": [rounded(row.get("fve_shuffled_greatest")) for row in rows],
            "loss recovered": [spread(row, "loss_recovered") for row in rows],
            "tokens survived": [spread(row, "tokens_survived") for row in rows],
        },
        caption="What each setting keeps, on documents that no training saw" + over_seeds(rows),
        remark="Numbers kept: the width of a dense code, or of a sparse one L0, the mean number of features that are "
        "active at once."
        + (" Loss recovered (against zero) and tokens survived are explained below." if beyond else ""),
    )
    _controls(page, rows)
    for at, of_site in charted([row for row in rows if not is_sparse(row)]):
        _by_width(result, page, of_site, at)
    for at, of_site in charted([row for row in rows if is_sparse(row)]):
        _frontier(result, page, of_site, at)
    _by_site(page, rows)


def _controls(page: Page, rows: Sequence[Row]) -> None:
    several = len(sites_of(rows)) > 1
    passed = [named(row, several) for row in rows if (number(row.get("fve_shuffled_greatest")) or 0) > 0]
    if passed:
        page.note(
            f"The control is above 0 for {', '.join(passed)}: codes of other tokens explain part of the variance, so "
            "part of the FVE is no knowledge of the token."
        )
    below = [named(row, several) for row in rows if _below_principal(row)]
    if below:
        page.note(
            f"Below PCA of the same size: {', '.join(below)}. PCA needs no training. A dense code below it has not "
            "been trained to its end (-o steps=…); nor has a sparse one, or its penalty holds back what is active."
        )


def _below_principal(row: Row) -> bool:
    fve, pca = number(row.get("fve")), number(row.get("pca"))
    return fve is not None and pca is not None and fve < pca


def _by_width(result: Result, page: Page, rows: Sequence[Row], at: str) -> None:
    series: dict[str, list[Band]] = {}
    for row in rows:
        size, fve = size_of(row), range_of(row, "fve")
        if size is not None and fve is not None:
            series.setdefault(line_of(row), []).append((size[0], *fve))
    widths = [float(str(point[0])) for line in series.values() for point in line]
    if not widths:
        return
    series = {name: sorted(line, key=lambda point: float(str(point[0]))) for name, line in series.items()}
    series["PCA"] = [
        (width, fve, fve, fve) for width, fve in principal(result, str(rows[0]["site"]), 1.25 * max(widths))
    ]
    page.band(
        {name: line for name, line in series.items() if line},
        x="width of the code",
        y="FVE",
        caption=f"What a dense code keeps{at}, by its width" + over_seeds(rows),
    )


def _frontier(result: Result, page: Page, rows: Sequence[Row], at: str) -> None:
    found = points(rows, "fve")
    if not found:
        return
    most = max(point["size, greatest"] for point in found)
    least = min(point["size, least"] for point in found)
    linear = principal(result, str(rows[0]["site"]), most)
    page.chart(
        by_size(
            found + reference("PCA", [pair for pair in linear if pair[0] >= min(least, most / 4)]),
            "features active at once, L0",
            "FVE",
        ),
        caption=f"The frontier of the sparse codes{at} (higher and further left is better), beside PCA with as many "
        "components" + over_seeds(rows),
    )


def _by_site(page: Page, rows: Sequence[Row]) -> None:
    sites = sites_of(rows)
    if len(sites) < 2:
        return
    names = list(dict.fromkeys(str(row["setting"]) for row in rows))
    series: dict[str, list[Band]] = {}
    for name in some(names, LINES):
        of = {row["site"]: range_of(row, "fve") for row in rows if row["setting"] == name}
        known = [(site, of[site]) for site in sites if of.get(site) is not None]
        if known:
            series[name] = [(site, *figures) for site, figures in known if figures is not None]
    if series:
        page.band(
            series,
            x="site",
            y="FVE",
            caption="Which layers compress: FVE by site"
            + over_seeds(rows)
            + (f"; {len(series)} of {len(names)} settings" if len(series) < len(names) else ""),
        )
