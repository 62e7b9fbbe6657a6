"""From what was measured of a Jacobian to figures: the table, metrics and the finding. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy

from probekit_plugins.arrays import array

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.jacobian_spectrum import JacobianSpectrumOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]


def figured(result: Result, options: JacobianSpectrumOptions) -> Result:
    """A result with the figures that follow from its tensors and prompts."""
    found = replace(result, tables={"sites": []}, metrics={}, notes=list(result.notes))
    for prompt in result.sequences["prompt"]:
        number = prompt.labels["prompt"]
        for site in str(prompt.labels["sites"]).split(","):
            prefix = f"{number}/{site}/"
            measured = {
                name.removeprefix(prefix): array(tensor)
                for name, tensor in result.tensors.items()
                if name.startswith(prefix)
            }
            method = "matrix-free" if "probes" in measured else "dense"
            found.tables["sites"].append(
                {"prompt": number, "site": site, "method": method, **_figures(measured, options)}
            )
    _summarise(found, options)
    return found


def _figures(measured: Mapping[str, Any], options: JacobianSpectrumOptions) -> Row:
    """One row of the table."""
    found = _estimates(measured, options) if "probes" in measured else _counts(measured, options)
    largest, least = float(measured["values"][0]), float(measured["values"][-1])
    floor = measured["floor"].item() * largest
    resolved = least > floor and found["least_error"] <= options.tolerance * least
    row: Row = {
        "entries": measured["columns"].item(),
        "largest": largest,
        "largest_found": found["largest_error"] <= options.tolerance * largest,
        "least": least,
        "least_found": resolved,
        "noise_floor": floor,
        "condition_number": largest / least if resolved else None,
        # An unfinished search gives too large a least value, and rounding hides what is below the floor.
        "condition_number_at_least": largest / max(least, floor) if largest else None,
    }
    return row | {name: value for name, value in found.items() if not name.startswith(("least", "largest"))}


def _counts(measured: Mapping[str, Any], options: JacobianSpectrumOptions) -> dict[str, float]:
    """The figures of all singular values: they have no error."""
    values = measured["values"]
    found = dict.fromkeys(("largest_error", "least_error", "gain", "gain_error"), 0.0)
    found["gain"] = math.sqrt(numpy.square(values).mean())
    for epsilon in options.epsilons:
        found |= _named(epsilon, float((values <= epsilon * values[0]).sum()), 0.0)
    return found


def _estimates(measured: Mapping[str, Any], options: JacobianSpectrumOptions) -> dict[str, float]:
    """Means over P probes with their standard errors.

    The extreme singular values are the extreme ones of the bidiagonal matrices, with their residuals. The share of
    singular values below a bound is `E Σ_j τ_j [θ_j ≤ bound]`, with θ those of a bidiagonal matrix and τ the squared
    first entries of its right singular vectors (stochastic Lanczos quadrature: Golub and Meurant 1994; Ubaru, Chen and
    Saad 2017).
    """
    values, probes, columns = measured["values"], measured["probes"], measured["columns"].item()
    squares, residuals = measured["squares"] / columns, measured["residuals"]
    count = len(squares)
    weights = numpy.diff(measured["shares"], prepend=0.0) * count
    gain = math.sqrt(squares.mean())
    found = {
        "largest_error": float(residuals[probes[0], 0]),
        # As many products as directions leave nothing to be found.
        "least_error": float(residuals[probes[-1], 1]) if len(values) < count * columns else 0.0,
        "gain": gain,
        "gain_error": _error(squares) / (2 * gain) if gain else 0.0,
    }
    for epsilon in options.epsilons:
        weak = weights * (values <= epsilon * values[0])
        dimensions = numpy.bincount(probes, weak, minlength=count) * columns
        found |= _named(epsilon, float(dimensions.mean()), _error(dimensions))
    return found


def _named(epsilon: float, dimension: float, error: float) -> dict[str, float]:
    return {f"null_dimension_{epsilon:g}": dimension, f"null_dimension_{epsilon:g}_error": error}


def _error(samples: Any) -> float:
    """The standard error of their mean."""
    return float(samples.std(ddof=1)) / math.sqrt(len(samples))


def _summarise(result: Result, options: JacobianSpectrumOptions) -> None:
    """Medians over prompts by site, and the finding."""
    sites = list(dict.fromkeys(str(row["site"]) for row in result.tables["sites"]))
    smallest = min(options.epsilons)
    figures = ["condition_number_at_least", "gain", "largest", "least"]
    figures += [f"null_dimension_{epsilon:g}" for epsilon in options.epsilons]
    for site in sites:
        rows = [row for row in result.tables["sites"] if row["site"] == site]
        for figure in figures:
            values = [float(value) for row in rows if (value := row[figure]) is not None]
            result.metrics[f"{site}/{figure}"] = median(values) if values else None
        result.metrics[f"{site}/entries"] = median(float(row["entries"] or 0) for row in rows)
        result.metrics[f"{site}/least_found"] = all(bool(row["least_found"]) for row in rows)
    shown = []
    for site in dict.fromkeys((sites[0], sites[-1])):
        condition = result.metrics[f"{site}/condition_number_at_least"]
        if condition is None:
            shown.append(f"at {site} the activation does not depend on the input")
            continue
        bound = "" if result.metrics[f"{site}/least_found"] else "at least "
        gain, null, entries = (
            float(result.metrics[f"{site}/{name}"] or 0) for name in ("gain", f"null_dimension_{smallest:g}", "entries")
        )
        shown.append(
            f"at {site} the condition number is {bound}{float(condition):.3g}, the gain {gain:.3g}, and {null:.0f} of "
            f"{entries:.0f} directions pass on at most {smallest:g} of what the strongest does"
        )
    finding = "; ".join(shown)
    result.finding = f"{finding[:1].upper()}{finding[1:]}."
    unresolved = [str(row["site"]) for row in result.tables["sites"] if not row["least_found"]]
    if unresolved:
        result.notes.insert(
            0,
            "The least singular value is below the noise floor of the arithmetic (--dtype float64 lowers it), or the "
            "matrix-free search has not converged on it (-o iterations=… finds smaller ones, -o method=dense all), at: "
            f"{', '.join(dict.fromkeys(unresolved))}. There the condition number is a lower bound.",
        )
