"""The result of the activation statistics: figures by site, the largest ones, outlier features, and the finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probekit import Result

if TYPE_CHECKING:
    from probekit_plugins.activation_statistics.statistics import SiteStatistics, Statistics

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
# Sun et al. (2024): a magnitude above the first, and about so many times the median.
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
# So many outlier features of a site are in the table; all are in the tensors.
MOST_FEATURES = 50
# With fewer tokens for each dimension, a participation ratio is too low by more than about a tenth.
TOKENS_PER_DIMENSION = 10


def summarised(statistics: Statistics) -> Result:
    """All figures as a result."""
    result = Result(tables={"sites": [], "largest": [], "outlier_features": []})
    for site, found in statistics.sites.items():
        figures = _figures(found, statistics.options.outlier_share)
        result.tables["sites"].append({"site": site, **figures})
        result.metrics |= {f"{site}/{name}": value for name, value in figures.items()}
        result.tables["largest"] += _largest(statistics, site, figures["magnitude_median"])
        result.tables["outlier_features"] += _outlier_features(site, found, statistics.options.outlier_share)
        result.tensors[f"share_above/{site}"] = found.tokens_above.double() / found.tokens
        result.tensors[f"largest_by_dimension/{site}"] = found.largest_by_dimension
    seen = int((statistics.tokens_by_position > 0).sum())
    counts = statistics.tokens_by_position[:seen]
    sums = torch.stack([found.norm_by_position[:seen] for found in statistics.sites.values()])
    result.tensors |= {"norm_by_position": sums / counts, "tokens_by_position": counts}
    result.metrics |= {
        "prompts": statistics.prompts,
        "tokens": statistics.tokens,
        "tokens_kept": statistics.tokens_kept,
    }
    result.finding = _finding(result)
    result.notes += _notes(statistics)
    return result


def _figures(found: SiteStatistics, outlier_share: float) -> Row:
    median = found.magnitudes.quantile(0.5)
    places = found.largest.places()
    largest = abs(places[0].value) if places else 0.0
    return {
        "width": found.width,
        "tokens": found.tokens,
        "norm_mean": found.norm_sum / found.tokens,
        "norm_median": found.norms.quantile(0.5),
        "norm_5_percent": found.norms.quantile(0.05),
        "norm_95_percent": found.norms.quantile(0.95),
        "norm_max": found.norm_max,
        "magnitude_median": median,
        "magnitude_max": largest,
        "magnitude_max_over_median": largest / median if median else None,
        "massive": found.magnitudes.above(max(MASSIVE, MASSIVE_RATIO * median)),
        "outlier_features": int((found.tokens_above >= outlier_share * found.tokens).sum()),
        "effective_dimension": found.covariance.participation_ratio() if found.covariance is not None else None,
        "mean_cosine": found.directions.mean_cosine(),
    }


def _largest(statistics: Statistics, site: str, median: Scalar) -> list[Row]:
    places = statistics.sites[site].largest.places()
    texts = statistics.token_texts([place.token for place in places])
    return [
        {
            "site": site,
            "rank": rank,
            "value": place.value,
            "over_median": abs(place.value) / float(median) if median else None,
            "dimension": place.dimension,
            "position": place.position,
            "prompt": place.prompt,
            "token_id": place.token,
            "token": text,
        }
        for rank, (place, text) in enumerate(zip(places, texts, strict=True))
    ]


def _outlier_features(site: str, found: SiteStatistics, share: float) -> list[Row]:
    """Dimensions that are outliers in enough of the tokens, those of the most tokens first."""
    order = found.tokens_above.argsort(descending=True, stable=True)[:MOST_FEATURES].tolist()
    return [
        {
            "site": site,
            "dimension": dimension,
            "share_of_tokens": float(found.tokens_above[dimension]) / found.tokens,
            "largest": float(found.largest_by_dimension[dimension]),
        }
        for dimension in order
        if float(found.tokens_above[dimension]) >= share * found.tokens
    ]


def _finding(result: Result) -> str:
    """Where the largest figure stands, whether it is massive, and how norms and dimensions go with depth."""
    rows = result.tables["sites"]
    first, last = rows[0], rows[-1]
    parts = []
    if result.tables["largest"]:
        top = max(result.tables["largest"], key=lambda row: abs(float(row["value"] or 0)))
        times = "" if top["over_median"] is None else f", {float(top['over_median']):.3g} times the median there"
        parts.append(
            f"the largest activation is {float(top['value'] or 0):.4g}, at {top['site']} in dimension "
            f"{top['dimension']} at position {top['position']}{times}"
        )
        massive = sum(bool(row["massive"]) for row in rows)
        parts.append(
            f"{massive} of {len(rows)} sites have massive activations" if massive else "no activation is massive"
        )
    else:
        parts.append("all activations are zero")
    parts.append(f"the median norm is {_over(first, last, 'norm_median', '.3g')}")
    if last["effective_dimension"] is not None:
        parts.append(
            f"tokens use {float(last['effective_dimension']):.3g} of {last['width']} dimensions at {last['site']}"
        )
    prompts, tokens = result.metrics["prompts"], result.metrics["tokens"]
    counted = f"{tokens} {'token' if tokens == 1 else 'tokens'} of {prompts} {'prompt' if prompts == 1 else 'prompts'}"
    return f"In {counted}, {'; '.join(parts)}."


def _over(first: Row, last: Row, name: str, digits: str) -> str:
    here = f"{format(float(last[name] or 0), digits)} at {last['site']}"
    return here if first is last else f"{format(float(first[name] or 0), digits)} at {first['site']} and {here}"


def _notes(statistics: Statistics) -> list[str]:
    notes = []
    skipped, kept = statistics.options.skip_first, statistics.tokens_kept
    if skipped:
        many = "position 0 does" if skipped == 1 else f"positions 0 to {skipped - 1} do"
        notes.append(
            f"The effective dimension and the mean cosine are of {kept} of {statistics.tokens} tokens: {many} not "
            "count for them (-o skip_first=0 counts all)."
        )
    if statistics.options.covariance_memory == 0:
        notes.append("The effective dimension was not asked for (-o covariance_memory=4 gives it 4 GiB).")
    if statistics.too_wide:
        needed = sum(8 * found.width**2 for found in statistics.sites.values()) / 2**30
        notes.append(
            f"No effective dimension of {', '.join(statistics.too_wide)}: all covariances together take {needed:.1f} "
            f"GiB, more than the {statistics.options.covariance_memory:g} they may have (-o covariance_memory=…)."
        )
    measured = {site: found.covariance for site, found in statistics.sites.items() if found.covariance is not None}
    widths = {site: statistics.sites[site].width for site in measured}
    few = [site for site, width in widths.items() if kept < TOKENS_PER_DIMENSION * width]
    if kept < 2:
        notes.append(
            "The effective dimension and the mean cosine need at least two tokens that count, so they are missing."
        )
    elif few:
        notes.append(
            f"{kept} tokens are few for the effective dimension of {', '.join(few)}, which comes out too low with "
            f"fewer than about ten for each dimension ({TOKENS_PER_DIMENSION * max(widths.values())})."
        )
    still = [site for site, covariance in measured.items() if covariance.participation_ratio() is None]
    if kept >= 2 and still:
        notes.append(f"All tokens have the same activation at {', '.join(still)}, so that no dimension is used there.")
    return notes
