"""What an inversion comes to over prompts and restarts: metrics by site, the finding, and what to know beside it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.gradient_inverter import GradientInverterOptions


def summarise(result: Result, sites: Sequence[str], options: GradientInverterOptions) -> None:
    """Metrics by site over prompts and restarts, the finding, and what a reader has to know beside it."""
    rescored, page = bool(options.rescore), options.compare_page
    for site in sites:
        result.metrics |= over_rows(result, "restarts", site, f"{site}/")
        rows = [row for row in result.tables["restarts"] if row["site"] == site]
        next_token = _known(rows, "next_token_of_tokens")
        result.metrics[f"{site}/next_token_rate"] = mean(next_token) if next_token else None
        if rescored:
            accuracy = _accuracies(rows, "rescored_token_accuracy")
            result.metrics |= {f"{site}/rescored_{name}": value for name, value in accuracy.items()}
            result.metrics[f"{site}/rescored_exact_rate"] = mean(_known(rows, "rescored_exact"))
        if page:
            result.metrics |= over_rows(result, "page_restarts", site, f"{site}/page/")

    result.finding = (
        f"Tokens recovered by the best of {options.restarts} restarts after {options.steps} steps, chosen by how well "
        f"its tokens reproduce the activation: {', '.join(_in_words(result.metrics, site, options) for site in sites)}."
    )
    if options.target_share:
        result.notes.append(
            f"The starts hold {options.target_share:g} times the prompt's own embeddings, so the accuracy is not that "
            "of an inversion from nothing."
        )
    if options.vocabulary == "prompts":
        result.notes.append("Only the prompts' own tokens could be found: a control, not an inversion from nothing.")


def over_rows(result: Result, table: str, site: str, prefix: str) -> dict[str, float | None]:
    """The metrics of a site over a table's rows of restarts; None where there are none."""
    rows = [row for row in result.tables.get(table, []) if row["site"] == site]
    ratios = _known(rows, "loss_ratio")
    found = {
        **_accuracies(rows, "token_accuracy"),
        "top_k_accuracy_mean": _mean(_known(rows, "top_k_accuracy")),
        "exact_rate": _mean(_known(rows, "exact")),
        "loss_ratio_median": median(ratios) if ratios else None,
        "closer_than_shifted_rate": _mean([float(value < 1) for value in ratios]),
    }
    return {f"{prefix}{name}": value for name, value in found.items()}


def _accuracies(rows: Sequence[dict[str, Any]], column: str) -> dict[str, float | None]:
    accuracy = _known(rows, column)
    return {
        "token_accuracy_mean": _mean(accuracy),
        "token_accuracy_min": min(accuracy, default=None),
        "token_accuracy_max": max(accuracy, default=None),
        "token_accuracy_selected": _mean(_known([row for row in rows if row["selected"]], column)),
    }


def _in_words(metrics: dict[str, Any], site: str, options: GradientInverterOptions) -> str:
    """The selected restart's accuracy, that of all restarts, and what it is compared with."""
    kind = "rescored_" if options.rescore else ""
    beside = [f"all restarts {metrics[f'{site}/{kind}token_accuracy_mean']:.0%}"]
    if options.rescore:
        beside.append(f"{metrics[f'{site}/token_accuracy_mean']:.0%} before re-scoring")
    if options.compare_page:
        found = metrics[f"{site}/page/token_accuracy_mean"]
        beside.append(f"{'nothing' if found is None else f'{found:.0%}'} at the page's own settings")
    return f"{site} {metrics[f'{site}/{kind}token_accuracy_selected']:.0%} ({', '.join(beside)})"


def _known(rows: Sequence[dict[str, Any]], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
