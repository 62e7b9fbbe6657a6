"""From what was measured to figures: by site, the largest ones, outlier features, and the finding. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from probekit_plugins import widths
from probekit_plugins.activation_statistics.formulas import Classes, mean_cosine, participation_ratio
from probekit_plugins.arrays import array

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.activation_statistics import ActivationStatisticsOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
Tensors = Mapping[str, Any]
# Sun et al. (2024): a magnitude above the first, and about so many times the median.
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
# So many outlier features of a site are in the table; all are in the tensors.
MOST_FEATURES = 50
# With fewer tokens for each dimension, a participation ratio is too low by more than about a tenth.
TOKENS_PER_DIMENSION = 10


def figured(measured: Result, options: ActivationStatisticsOptions) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, and the texts of tokens."""
    tensors = {name: array(tensor) for name, tensor in measured.tensors.items()}
    [vocabulary] = measured.sequences["vocabulary"]
    texts = dict(zip(vocabulary.ids, vocabulary.tokens, strict=True))
    result = replace(measured, tables={"sites": [], "largest": [], "outlier_features": []}, metrics={})
    for place, (site, width) in enumerate(widths.of_tensors(tensors).items()):
        figures = {"width": width, **_figures(tensors, site, place, options.outlier_share)}
        result.tables["sites"].append({"site": site, **figures})
        result.metrics |= {f"{site}/{name}": value for name, value in figures.items()}
        result.tables["largest"] += _largest(tensors, site, figures["magnitude_median"], texts)
        result.tables["outlier_features"] += _outlier_features(tensors, site, options.outlier_share)
    result.metrics |= {name: int(tensors[name].item()) for name in ("prompts", "tokens", "tokens_kept")}
    result.finding = _finding(result)
    result.notes = [*measured.notes, *_notes(result, options)]
    return result


def _figures(tensors: Tensors, site: str, place: int, outlier_share: float) -> Row:
    tokens, kept = (int(tensors[name].item()) for name in ("tokens", "tokens_kept"))
    norms, magnitudes = (
        Classes(tensors[f"{name}/{site}/values"].astype(float), tensors[f"{name}/{site}/counts"])
        for name in ("norms", "magnitudes")
    )
    median = magnitudes.quantile(0.5)
    largest = max(abs(tensors[f"largest/{site}/values"]).tolist(), default=0.0)
    covariance = tensors.get(f"covariance/{site}")
    return {
        "tokens": tokens,
        "norm_mean": float(tensors["norm_sum"][place]) / tokens,
        "norm_median": norms.quantile(0.5),
        "norm_5_percent": norms.quantile(0.05),
        "norm_95_percent": norms.quantile(0.95),
        "norm_max": float(tensors["norm_max"][place]),
        "magnitude_median": median,
        "magnitude_max": largest,
        "magnitude_max_over_median": largest / median if median else None,
        "massive": magnitudes.above(max(MASSIVE, MASSIVE_RATIO * median)),
        "outlier_features": int((tensors[f"share_above/{site}"] >= outlier_share).sum()),
        "effective_dimension": None if covariance is None else participation_ratio(kept, *covariance.tolist()),
        "mean_cosine": mean_cosine(int(tensors["directions"][place]), float(tensors["direction_squares"][place])),
    }


def _largest(tensors: Tensors, site: str, median: Scalar, texts: Mapping[int, str]) -> list[Row]:
    values, places = (tensors[f"largest/{site}/{part}"].tolist() for part in ("values", "places"))
    return [
        {
            "site": site,
            "rank": rank,
            "value": value,
            "over_median": abs(value) / float(median) if median else None,
            "dimension": dimension,
            "position": position,
            "prompt": prompt,
            "token_id": token,
            "token": texts[token],
        }
        for rank, (value, dimension, position, prompt, token) in enumerate(zip(values, *places, strict=True))
    ]


def _outlier_features(tensors: Tensors, site: str, share: float) -> list[Row]:
    """Dimensions that are outliers in enough of the tokens, those of the most tokens first."""
    shares, largest = tensors[f"share_above/{site}"], tensors[f"largest_by_dimension/{site}"]
    order = (-shares).argsort(kind="stable")[:MOST_FEATURES].tolist()
    return [
        {
            "site": site,
            "dimension": dimension,
            "share_of_tokens": float(shares[dimension]),
            "largest": float(largest[dimension]),
        }
        for dimension in order
        if shares[dimension] >= share
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


def _notes(result: Result, options: ActivationStatisticsOptions) -> list[str]:
    notes = []
    rows = result.tables["sites"]
    skipped, kept, tokens = options.skip_first, int(result.metrics["tokens_kept"] or 0), result.metrics["tokens"]
    if skipped:
        many = "position 0 does" if skipped == 1 else f"positions 0 to {skipped - 1} do"
        notes.append(
            f"The effective dimension and the mean cosine are of {kept} of {tokens} tokens: {many} not "
            "count for them (-o skip_first=0 counts all)."
        )
    every = {str(row["site"]): int(row["width"] or 0) for row in rows}
    # A covariance that does not fit into the memory that it is given is left out.
    measured = {site: width for site, width in every.items() if f"covariance/{site}" in result.tensors}
    if options.covariance_memory == 0:
        notes.append("The effective dimension was not asked for (-o covariance_memory=4 gives it 4 GiB).")
    elif too_wide := [site for site in every if site not in measured]:
        needed = sum(8 * width**2 for width in every.values()) / 2**30
        notes.append(
            f"No effective dimension of {', '.join(too_wide)}: all covariances together take {needed:.1f} "
            f"GiB, more than the {options.covariance_memory:g} they may have (-o covariance_memory=…)."
        )
    few = [site for site, width in measured.items() if kept < TOKENS_PER_DIMENSION * width]
    if kept < 2:
        notes.append(
            "The effective dimension and the mean cosine need at least two tokens that count, so they are missing."
        )
    elif few:
        notes.append(
            f"{kept} tokens are few for the effective dimension of {', '.join(few)}, which comes out too low with "
            f"fewer than about ten for each dimension ({TOKENS_PER_DIMENSION * max(measured.values())})."
        )
    still = [str(row["site"]) for row in rows if row["site"] in measured and row["effective_dimension"] is None]
    if kept >= 2 and still:
        notes.append(f"All tokens have the same activation at {', '.join(still)}, so that no dimension is used there.")
    return notes
