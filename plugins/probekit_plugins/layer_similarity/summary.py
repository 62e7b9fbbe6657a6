"""The result of the layer similarity: every pair, neighbours, runs of alike sites, and the finding."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from probekit import Result
from probekit_plugins.layer_similarity.hsic import LEAST_ROWS
from probekit_plugins.layer_similarity.similarity import Similarity

if TYPE_CHECKING:
    from collections.abc import Sequence

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]


def summarised(similarity: Similarity) -> Result:
    """All figures as a result. Raises AnalysisError if no token counts."""
    from probekit import AnalysisError

    skipped = similarity.options.skip_first
    if not similarity.tokens_kept:
        raise AnalysisError(
            "No token is left to compare: "
            + ("position 0 does" if skipped == 1 else f"positions 0 to {skipped - 1} do")
            + " not count, and no prompt is longer; give longer ones, or -o skip_first=0."
        )
    similarity.end()
    cka, error = similarity.cka()
    sites = similarity.sites
    runs = _runs(sites, cka, similarity.options.alike)
    result = Result(
        tables={
            "sites": [{"site": site, "width": width} for site, width in similarity.widths.items()],
            "pairs": _pairs(sites, cka, error),
            "neighbours": _neighbours(similarity, cka),
            "runs": runs,
        },
        metrics={
            "prompts": similarity.prompts,
            "tokens": similarity.tokens,
            "tokens_kept": similarity.tokens_kept,
            "tokens_compared": similarity.tokens_compared,
            "minibatches": similarity.minibatches,
        },
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
    result.finding = _finding(result, similarity)
    result.notes += _notes(result, similarity)
    return result


def _known(value: torch.Tensor) -> float | None:
    return None if math.isnan(float(value)) else float(value)


def _pairs(sites: Sequence[str], cka: torch.Tensor, error: torch.Tensor | None) -> list[Row]:
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


def _neighbours(similarity: Similarity, cka: torch.Tensor) -> list[Row]:
    """Each site but the first, with the one before it."""
    rows: list[Row] = []
    for index, pair in enumerate(pairwise(similarity.sites)):
        found = similarity.neighbours.get(pair)
        rows.append(
            {
                "site": pair[1],
                "before": pair[0],
                "cka": _known(cka[index, index + 1]),
                "cosine": found.cosine if found else None,
                "angle": found.angle if found else None,
            }
        )
    return rows


def _runs(sites: Sequence[str], cka: torch.Tensor, alike: float) -> list[Row]:
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


def _finding(result: Result, similarity: Similarity) -> str:
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
                f"no two neighbours are alike (CKA of at least {similarity.options.alike:g}); the most alike sites are "
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
    return f"Of {len(similarity.sites)} sites, {'; '.join(parts) or 'none could be compared'}."


def _notes(result: Result, similarity: Similarity) -> list[str]:
    notes = []
    skipped = similarity.options.skip_first
    if skipped:
        many = "position 0 does" if skipped == 1 else f"positions 0 to {skipped - 1} do"
        notes.append(
            f"{similarity.tokens_kept} of {similarity.tokens} tokens are compared: {many} not count (-o skip_first=0 "
            "counts all)."
        )
    if similarity.tokens_kept < LEAST_ROWS:
        notes.append(f"CKA needs at least {LEAST_ROWS} tokens that count, so it is missing.")
        return notes
    if result.metrics["cka_error_greatest"] is None and result.metrics["cka_least"] is not None:
        notes.append("There is one minibatch, and so nothing to tell the error of CKA from.")
    missing = [row for row in result.tables["pairs"] if row["cka"] is None]
    if missing:
        sites = [site for site in similarity.sites if all(row["cka"] is None for row in _with(result, site))]
        notes.append(f"All tokens have the same activation at {', '.join(sites)}, so CKA is missing there.")
    return notes


def _with(result: Result, site: str) -> list[Row]:
    return [row for row in result.tables["pairs"] if site in (row["site"], row["other"])]
