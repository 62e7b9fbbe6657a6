"""What an inversion comes to over prompts and restarts: metrics by site, the finding, and what to know beside it. No
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.gradient_inverter import GradientInverterOptions


# Of more sites, the finding tells the ends and the worst.
SITES_TOLD = 4


def summarise(result: Result, sites: Sequence[str], options: GradientInverterOptions) -> None:
    """Metrics by site over prompts and restarts, and the finding."""
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

    result.finding = _finding(result, sites, options)


def notes_on_starts(options: GradientInverterOptions) -> list[str]:
    """What a reader has to know of an inversion that does not begin with nothing."""
    notes = []
    if options.target_share:
        notes.append(
            f"The starts hold {options.target_share:g} times the prompt's own embeddings, so the accuracy is not that "
            "of an inversion from nothing."
        )
    if options.vocabulary == "prompts":
        notes.append("Only the prompts' own tokens could be found: a control, not an inversion from nothing.")
    return notes


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


def _finding(result: Result, sites: Sequence[str], options: GradientInverterOptions) -> str:
    """One sentence: the selected restart's accuracy, that of all restarts, and what it is compared with."""
    kind = "rescored_" if options.rescore else ""
    count = len({row["prompt"] for row in result.tables["restarts"]})
    tokens = "the prompt's tokens" if count == 1 else f"the {count} prompts' tokens"
    found = f"Gradient descent recovers {_from_sites(result, sites, f'{kind}token_accuracy_selected', tokens)}"
    if options.restarts > 1:
        every = _over_sites(result, sites, f"{kind}token_accuracy_mean")
        found += (
            f", in the best of {options.restarts} restarts, chosen without knowing the prompt; the mean of all "
            f"restarts is {every}"
        )
    if options.rescore:
        found += f", before re-scoring {_over_sites(result, sites, 'token_accuracy_mean')}"
    if options.compare_page:
        found += f", at the source page's settings {_over_sites(result, sites, 'page/token_accuracy_mean')}"
    return f"{found}."


def _from_sites(result: Result, sites: Sequence[str], figure: str, tokens: str) -> str:
    """`100% of the prompt's tokens from block.0 and 96% from block.5`."""
    shares = {site: float(result.metrics[f"{site}/{figure}"] or 0) for site in sites}
    percent = {site: _percent(share) for site, share in shares.items()}
    first, last = sites[0], sites[-1]
    if len(sites) > 1 and len(set(percent.values())) == 1:
        return f"{percent[first]} of {tokens} from each of {len(sites)} sites ({first} to {last})"
    told, of_many = list(sites), ""
    if len(sites) > SITES_TOLD:
        worst = min(shares, key=lambda site: shares[site])
        told = [site for site in sites if site in (first, worst, last)]
        of_many = f" (of {len(sites)} sites the first, the worst and the last)"
    others = [f"{percent[site]} from {site}" for site in told[1:]]
    listed = "".join(f", {other}" for other in others[:-1]) + (f" and {others[-1]}" if others else "")
    return f"{percent[first]} of {tokens} from {first}{listed}{of_many}"


def _over_sites(result: Result, sites: Sequence[str], figure: str) -> str:
    """`100%` where it is that everywhere, `100%/96%` at a few sites, `70% to 100%` at many."""
    shares = [result.metrics[f"{site}/{figure}"] for site in sites]
    listed = [_percent(share) for share in shares]
    if len(set(listed)) == 1:
        return listed[0]
    if len(sites) <= SITES_TOLD:
        return "/".join(listed)
    known = [float(share) for share in shares if share is not None]
    return f"{_percent(min(known))} to {_percent(max(known))}"


def _percent(share: Any) -> str:
    """In per cent; 100% only of all, 0% only of none. What is not known is not finite: no descent came to an end."""
    if share is None:
        return "nothing finite"
    rounded = f"{share:.0%}"
    return {"100%": ">99%", "0%": "<1%"}.get(rounded, rounded) if 0 < share < 1 else rounded


def _known(rows: Sequence[dict[str, Any]], column: str) -> list[float]:
    return [float(row[column]) for row in rows if row[column] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
