"""From what was measured to figures: every pair, neighbours, runs of alike sites, and the finding. No torch."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy

from probekit_plugins import widths
from probekit_plugins.arrays import array
from probekit_plugins.layer_similarity import LEAST_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probekit import Result
    from probekit_plugins.layer_similarity import LayerSimilarityOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
# A site whose activations vary by less than this share of their length holds nothing: it is what fp32 rounds off.
_NO_SPREAD = 1e-7


def figured(measured: Result, options: LayerSimilarityOptions) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy."""
    tensors = {name: array(tensor) for name, tensor in measured.tensors.items()}
    of_sites = widths.of_tensors(tensors)
    sites = list(of_sites)
    cka, error = _cka(tensors)
    runs = _runs(sites, cka, options.alike)
    counts = ("prompts", "tokens", "tokens_kept", "tokens_compared", "minibatches")
    result = replace(
        measured,
        tables={
            "sites": [{"site": site, "width": width} for site, width in of_sites.items()],
            "pairs": _pairs(sites, cka, error),
            "neighbours": _neighbours(sites, cka, tensors),
            "runs": runs,
        },
        metrics={name: int(tensors[name].item()) for name in counts},
    )
    known = [row for row in result.tables["pairs"] if row["cka"] is not None]
    figures = [float(row["cka"] or 0) for row in known]
    errors = [float(row["error"]) for row in known if row["error"] is not None]
    result.metrics |= {
        "cka_least": min(figures, default=None),
        "cka_greatest": max(figures, default=None),
        "cka_error_greatest": max(errors, default=None),
        "longest_run": max((int(row["sites"] or 0) for row in runs), default=1),
    }
    for row in result.tables["neighbours"]:
        result.metrics |= {f"{row['site']}/{name}": row[name] for name in ("cka", "cosine", "angle")}
    result.finding = _finding(result, options)
    result.notes = [*measured.notes, *_notes(result, options)]
    return result


def _cka(tensors: Mapping[str, Any]) -> tuple[Any, Any]:
    """CKA of every pair `[sites, sites]`, NaN where a site does not vary, and its standard error.

    The error is the jackknife's over groups of minibatches, None for fewer than two: how far CKA may be from that
    of all these tokens at once. Other prompts would give another CKA, of which it says nothing.
    """
    hsic, compared = tensors["hsic"], max(1, tensors["tokens_compared"].item())
    total = hsic.sum(0)
    still = total.diagonal() / compared <= (_NO_SPREAD**2 * tensors["squares"] / compared) ** 2
    whole = _ratio(total)
    whole[still] = math.nan
    whole[:, still] = math.nan
    groups = len(hsic)
    if groups < 2:
        return whole, None
    without = numpy.stack([_ratio(total - group) for group in hsic])
    spread = numpy.square(without - without.mean(0)).sum(0)
    return whole, numpy.sqrt(spread * (groups - 1) / groups)


def _ratio(total: Any) -> Any:
    """`H_ij / √(H_ii H_jj)`, in which the weights of minibatches cancel. NaN where a site does not vary."""
    with numpy.errstate(divide="ignore", invalid="ignore"):
        roots = numpy.sqrt(total.diagonal())
        return (total / roots[:, None] / roots).clip(-1, 1)


def _known(value: float) -> float | None:
    return None if math.isnan(float(value)) else float(value)


def _pairs(sites: Sequence[str], cka: Any, error: Any) -> list[Row]:
    """Each pair of sites once, the earlier one first."""
    return [
        {
            "site": site,
            "other": sites[column],
            "cka": _known(cka[row, column]),
            "error": None if error is None or _known(cka[row, column]) is None else _known(error[row, column]),
        }
        for row, site in enumerate(sites)
        for column in range(row + 1, len(sites))
    ]


def _neighbours(sites: Sequence[str], cka: Any, tensors: Mapping[str, Any]) -> list[Row]:
    """Each site but the first, with the one before it: CKA, mean cosine and mean angle (None without a token)."""
    sums = zip(*(tensors[f"neighbours/{name}"].tolist() for name in ("tokens", "cosines", "angles")), strict=True)
    return [
        {
            "site": site,
            "before": before,
            "cka": _known(cka[index, index + 1]),
            "cosine": cosines / count if count else None,
            "angle": angles / count if count else None,
        }
        for index, ((before, site), (count, cosines, angles)) in enumerate(zip(pairwise(sites), sums, strict=True))
    ]


def _runs(sites: Sequence[str], cka: Any, alike: float) -> list[Row]:
    """Runs of neighbouring sites in which every pair is alike, none of them within another: two sites at least."""
    runs: list[Row] = []
    reached = 0
    for start in range(len(sites)):
        end = start
        while end + 1 < len(sites) and bool((cka[start : end + 1, end + 1] >= alike).all()):
            end += 1
        if end > max(start, reached):
            within = cka[start : end + 1, start : end + 1]
            runs.append(
                {
                    "first": sites[start],
                    "last": sites[end],
                    "sites": end - start + 1,
                    "least_cka": float(within.min()),
                }
            )
        reached = max(reached, end)
    return runs


def _finding(result: Result, options: LayerSimilarityOptions) -> str:
    """The longest run of alike sites, the least alike pair, and the neighbours with the least angle."""
    parts = []
    known = [row for row in result.tables["pairs"] if row["cka"] is not None]
    if known:
        least = min(known, key=lambda row: float(row["cka"] or 0))
        most = max(known, key=lambda row: float(row["cka"] or 0))
        if runs := result.tables["runs"]:
            run = max(runs, key=lambda row: (int(row["sites"] or 0), float(row["least_cka"] or 0)))
            joined = "and" if run["sites"] == 2 else "to"
            parts.append(
                f"{run['first']} {joined} {run['last']} are alike: "
                f"{'a' if run['sites'] == 2 else 'every pair has a'} CKA of "
                f"{'' if run['sites'] == 2 else 'at least '}{float(run['least_cka'] or 0):.3f}"
            )
        else:
            parts.append(
                f"no two neighbours are alike (CKA of at least {options.alike:g}); the most alike sites are "
                f"{most['site']} and {most['other']} with {float(most['cka'] or 0):.3f}"
            )
        if least is not most:
            parts.append(
                f"the least alike are {least['site']} and {least['other']} with {float(least['cka'] or 0):.3f}"
            )
    angles = [row for row in result.tables["neighbours"] if row["angle"] is not None]
    if angles:
        turn = min(angles, key=lambda row: float(row["angle"] or 0))
        parts.append(
            f"{turn['site']} turns activations the least from {turn['before']}, by "
            f"{180 * float(turn['angle'] or 0):.3g}° (mean cosine {float(turn['cosine'] or 0):.3f})"
        )
    return f"Of {len(result.tables['sites'])} sites, {'; '.join(parts) or 'none could be compared'}."


def _notes(result: Result, options: LayerSimilarityOptions) -> list[str]:
    notes = []
    skipped, metrics = options.skip_first, result.metrics
    if skipped:
        many = "position 0 does" if skipped == 1 else f"positions 0 to {skipped - 1} do"
        notes.append(
            f"{metrics['tokens_kept']} of {metrics['tokens']} tokens are compared: {many} not count (-o skip_first=0 "
            "counts all)."
        )
    if int(metrics["tokens_kept"] or 0) < LEAST_ROWS:
        notes.append(f"CKA needs at least {LEAST_ROWS} tokens that count, so it is missing.")
        return notes
    if metrics["cka_error_greatest"] is None and metrics["cka_least"] is not None:
        notes.append("There is one minibatch, and so nothing to tell the error of CKA from.")
    missing = [row for row in result.tables["pairs"] if row["cka"] is None]
    if missing:
        every = [str(row["site"]) for row in result.tables["sites"]]
        sites = [site for site in every if all(row["cka"] is None for row in _with(result, site))]
        notes.append(f"All tokens have the same activation at {', '.join(sites)}, so CKA is missing there.")
    return notes


def _with(result: Result, site: str) -> list[Row]:
    return [row for row in result.tables["pairs"] if site in (row["site"], row["other"])]
