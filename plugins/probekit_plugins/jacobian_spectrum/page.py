"""The page of the Jacobian spectrum: figures by site, and the distribution of singular values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit_plugins.thinning import thinned

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.jacobian_spectrum import JacobianSpectrumOptions

# A chart has at most this many lines.
LINES = 8


def draw(result: Result, page: Page, options: JacobianSpectrumOptions) -> None:
    page.prose(
        "J = ∂O/∂e is the Jacobian of the activation at the prompt's embeddings, all positions together. Its singular "
        "values σ say how much farther a small change of the input moves the activation, direction by direction. Their "
        "ratio from first to last is the condition number: how unevenly the layer passes changes on. The ε-null space "
        "counts the directions that pass on at most ε of what the strongest does, and the gain ‖J‖_F/√n is the root "
        "mean square over all directions: what noise sees."
    )
    rows = result.tables["sites"]
    sites = list(dict.fromkeys(str(row["site"]) for row in rows))
    for sequence in result.sequences["prompt"]:
        number = int(sequence.labels["prompt"] or 0)
        chosen = [row for row in rows if row["prompt"] == number]
        if len(result.sequences["prompt"]) > 1:
            page.heading(f"Prompt {number + 1}: {''.join(sequence.tokens)}")
        _table(page, chosen, options)
        if len(sites) > 1:
            _by_site(page, chosen, options)
        _spectra(result, page, number, sites)


def _table(page: Page, rows: Sequence[dict[str, Any]], options: JacobianSpectrumOptions) -> None:
    def bound(row: dict[str, Any]) -> str | None:
        if row["condition_number"] is not None:
            return f"{row['condition_number']:.4g}"
        return None if row["condition_number_at_least"] is None else f"≥ {row['condition_number_at_least']:.3g}"

    def with_error(row: dict[str, Any], name: str, digits: str) -> str:
        error = row[f"{name}_error"]
        return format(row[name], digits) + (f" ± {format(error, '.2g')}" if error else "")

    dimensions = [f"null_dimension_{epsilon:g}" for epsilon in options.epsilons]
    page.table(
        [
            "site",
            "method",
            "n",
            "σ_1",
            "σ_min",
            "condition number",
            "gain",
            *(f"σ ≤ {epsilon:g} σ_1" for epsilon in options.epsilons),
        ],
        [
            [
                row["site"],
                row["method"],
                row["entries"],
                f"{row['largest']:.4g}" + ("" if row["largest_found"] else " (not converged)"),
                f"{row['least']:.3g}" + ("" if row["least_found"] else " (not resolved)"),
                bound(row),
                with_error(row, "gain", ".4g"),
                *(with_error(row, name, ".0f") for name in dimensions),
            ]
            for row in rows
        ],
        caption="By site; ± is the standard error over probes, and ≥ a lower bound",
    )


def _by_site(page: Page, rows: Sequence[dict[str, Any]], options: JacobianSpectrumOptions) -> None:
    def points(name: str, scale: float = 1.0) -> list[tuple[str, float | None]]:
        return [(row["site"], None if row[name] is None else float(row[name]) / scale) for row in rows]

    for name, title in (("condition_number_at_least", "condition number"), ("gain", "gain")):
        page.lines(
            {title: points(name)},
            x="site",
            y=title,
            caption=f"The {title} by site",
            log_y=True,
        )
    page.lines(
        {
            f"σ ≤ {epsilon:g} σ_1": points(f"null_dimension_{epsilon:g}", float(rows[0]["entries"]))
            for epsilon in options.epsilons
        },
        x="site",
        y="share of directions",
        caption="Size of the ε-null space by site",
    )


def _spectra(result: Result, page: Page, number: int, sites: Sequence[str]) -> None:
    shown = [sites[index] for index in thinned(len(sites), LINES)]

    def points(site: str) -> list[tuple[float, float]]:
        values, shares = result.tensors[f"{number}/{site}/values"], result.tensors[f"{number}/{site}/shares"]
        top = float(values[0]) or 1.0
        return [(float(shares[i]), float(values[i]) / top) for i in thinned(len(values)) if values[i] > 0]

    page.lines(
        {site: points(site) for site in shown},
        x="share of directions",
        y="σ / σ_1",
        caption="Singular values, falling: the share of directions that pass on at least so much of the strongest's",
        log_y=True,
    )
