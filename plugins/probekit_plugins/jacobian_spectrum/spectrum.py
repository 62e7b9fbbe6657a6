"""Singular values of a layer's Jacobian: all of them, or estimates from products with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.batches import Batches
from probekit_plugins.jacobian import Jacobian, bidiagonalise, dense
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.jacobian_spectrum import JacobianSpectrumOptions

Scalar = str | int | float | bool | None
# The bases of the probes that are computed together take about so much memory.
BASIS_BYTES = 1 << 31
# For each probe, so many draws measure what its basis leaves out of ‖J‖_F.
OUTSIDE_DRAWS = 8
# And a dense Jacobian at most so much.
DENSE_BYTES = 1 << 30


def run(subject: Subject, prompts: Sequence[Prompt], options: JacobianSpectrumOptions, context: Context) -> Result:
    """The spectrum at every site for each prompt. Raises AnalysisError if an activation is not finite."""
    sites = subject.expand_sites(options.sites)
    batches = Batches(context)
    result = Result(tables={"sites": []}, sequences={"prompt": []})
    for number, prompt in enumerate(prompts):
        result.sequences["prompt"].append(
            TokenSequence(prompt.input_ids[0].tolist(), prompt.tokens, {"prompt": number})
        )
        for site in sites:
            place = Place(subject, prompt, site)
            is_dense = options.method == "dense" or (options.method == "auto" and place.fits(options.dense_entries))
            key = f"{number}/{site}"
            found = context.stage(key, partial(_measured, place, is_dense, options, context, key, batches))
            batches.limit(int(found["halved_to"]))  # as it was, where it is read back
            result.tensors |= {f"{key}/{name}": found[name] for name in ("values", "shares")}
            row: dict[str, Scalar] = {"prompt": number, "site": site, "method": "dense" if is_dense else "matrix-free"}
            result.tables["sites"].append(row | _figures(found, options))
    _summarise(result, sites, options)
    if subject.conditioned_on_ids:
        result.notes.append(
            "Conditioned on ids: blocks of this model read the token ids again, so the Jacobian is that of the path "
            "through the embeddings alone."
        )
    result.notes += batches.notes()
    return result


class Place:
    """A site's layer map at one prompt's embeddings `[T, d]`: `J` has `n = T d` columns and `m = T w` rows."""

    def __init__(self, subject: Subject, prompt: Prompt, site: str) -> None:
        self.layer_map = subject.layer_map(site, input_ids=prompt.input_ids if subject.reads_ids(site) else None)
        self.embeddings = at_least_single(subject.embed(prompt.input_ids)[0])
        with torch.no_grad():
            activation = self.layer_map(self.embeddings[None])
        subject.check_finite(activation, f"The activation at {site}")
        self.columns, self.rows = self.embeddings.numel(), activation.numel()

    def fits(self, entries: int) -> bool:
        """Whether J itself is small enough to be held."""
        return self.columns <= entries and self.columns * self.rows * 8 <= DENSE_BYTES

    def jacobian(self, copies: int) -> Jacobian:
        """J at the same point, so many times as rows of a batch."""
        embeddings = self.embeddings.expand(copies, -1, -1)
        return Jacobian(self.layer_map, embeddings, torch.ones_like(embeddings[..., :1]))

    def noise_floor(self, generator: torch.Generator) -> float:
        """`√n` times the relative rounding error of products: singular values below this share of σ_1 are noise.

        The error is that of the arithmetic, or what it is seen to be where a model computes parts in less:
        `|u·Jv − Jᵀu·v| / (‖u‖ ‖Jv‖)`, which is 0 in exact arithmetic.
        """
        jacobian = self.jacobian(1)
        v = torch.randn(1, *self.embeddings.shape, generator=generator, dtype=torch.float64).to(self.embeddings.device)
        pushed = jacobian.times(v)
        u = torch.randn(pushed.shape, generator=generator, dtype=torch.float64).to(pushed.device)
        # The vectors as the products saw them, after rounding to the model's precision.
        seen_u, seen_v = u.to(jacobian.output.dtype).double(), v.to(self.embeddings.dtype).double()
        apart = (seen_u * pushed).sum() - (jacobian.transposed_times(u) * seen_v).sum()
        seen = float(apart.abs() / (u.norm() * pushed.norm()))
        return math.sqrt(self.columns) * max(jacobian.precision(), seen)


def _measured(
    place: Place, is_dense: bool, options: JacobianSpectrumOptions, context: Context, key: str, batches: Batches
) -> dict[str, torch.Tensor]:
    """What either method finds, and the noise floor that it is seen against."""
    found = _dense(place, options, batches, key) if is_dense else _matrix_free(place, options, context, key, batches)
    floor = place.noise_floor(context.generator(f"{key}/floor"))
    numbers = {"columns": torch.tensor(place.columns), "halved_to": torch.tensor(batches.halved_to)}
    return {**found, "floor": torch.tensor(floor), **numbers}


def _dense(place: Place, options: JacobianSpectrumOptions, batches: Batches, key: str) -> dict[str, torch.Tensor]:
    """Every singular value: `J` column by column, decomposed in float64."""
    values = torch.linalg.svdvals(dense(place.layer_map, place.embeddings, batches=batches, where=key))
    # With fewer rows than columns, the other directions are not seen at all.
    values = torch.nn.functional.pad(values, (0, place.columns - len(values)))
    shares = torch.arange(1, place.columns + 1, dtype=torch.float64) / place.columns
    dimensions = torch.stack([(values <= epsilon * values[0]).sum() for epsilon in options.epsilons]).double()
    return {
        "values": values,
        "shares": shares,
        "least": values[-1],
        "least_error": torch.zeros(()),
        "largest": values[0],
        "largest_error": torch.zeros(()),
        "gain": values.square().mean().sqrt(),
        "gain_error": torch.zeros(()),
        "dimensions": dimensions,
        "dimension_errors": torch.zeros_like(dimensions),
    }


def _matrix_free(
    place: Place, options: JacobianSpectrumOptions, context: Context, key: str, batches: Batches
) -> dict[str, torch.Tensor]:
    """Estimates from P probes, each a bidiagonalisation of k steps from a random vector.

    The extreme singular values are the extreme ones of the bidiagonal matrices, with their residuals. The share of
    singular values below a bound is `E Σ_j τ_j [θ_j ≤ bound]`, with θ those of a bidiagonal matrix and τ the squared
    first entries of its right singular vectors (stochastic Lanczos quadrature: Golub and Meurant 1994; Ubaru, Chen and
    Saad 2017). `‖J‖_F² = ‖B‖_F² + E ‖J (I − V Vᵀ) z‖²` with z standard normal (Hutch++: Meyer et al. 2021).
    """
    count = min(options.iterations, place.columns)
    at_once = max(1, BASIS_BYTES // (count * (place.columns + place.rows) * 8))

    def probed(chosen: slice) -> dict[str, torch.Tensor]:
        drawn = [context.generator(f"{key}/probe {probe}") for probe in range(chosen.start, chosen.stop)]
        with context.progress(key, count) as progress:
            return _probe(place, count, drawn, progress.step)

    parts = batches.parts(options.probes, probed, key, at_once)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    values, weights, residuals = joined["values"], joined["weights"], joined["residuals"]
    largest, least = values[:, 0].max(), values[:, -1].min()
    of_least = int(values[:, -1].argmin())
    below = [((values <= epsilon * largest) * weights).sum(1) * place.columns for epsilon in options.epsilons]
    squares = joined["squares"] / place.columns
    gain = squares.mean().sqrt()
    order = values.flatten().argsort(descending=True)
    return {
        "values": values.flatten()[order],
        "shares": weights.flatten()[order].cumsum(0) / len(weights),
        "least": least,
        "least_error": residuals[of_least, -1] if count < place.columns else torch.zeros(()),
        "largest": largest,
        "largest_error": residuals[int(values[:, 0].argmax()), 0],
        "gain": gain,
        "gain_error": squares.std() / math.sqrt(len(squares)) / (2 * gain),
        "dimensions": torch.stack([each.mean() for each in below]),
        "dimension_errors": torch.stack([each.std() / math.sqrt(len(each)) for each in below]),
    }


def _probe(
    place: Place, count: int, generators: Sequence[torch.Generator], step: Callable[[], None]
) -> dict[str, torch.Tensor]:
    """Bidiagonalisations from some random vectors at once, and the energy of J outside of their bases."""

    def draw(shape: Sequence[int]) -> torch.Tensor:
        return torch.stack([torch.randn(shape[1:], generator=each, dtype=torch.float64) for each in generators])

    jacobian = place.jacobian(len(generators))
    shape = (len(generators), *place.embeddings.shape)
    device = place.embeddings.device
    found = bidiagonalise(jacobian, draw(shape).to(device), count, draw, step)
    values, _, right, residuals = found.triplets()
    squares = found.matrix.square().sum((1, 2))
    for _ in range(OUTSIDE_DRAWS if count < place.columns else 0):
        outside = draw(shape).to(device)
        outside = outside - found.combine(torch.einsum("bktd,btd->bk", found.right, outside)[..., None])[:, 0]
        squares = squares + jacobian.times(outside).square().sum((1, 2)) / OUTSIDE_DRAWS
    return {"values": values, "weights": right[:, 0].square(), "residuals": residuals, "squares": squares}


def _figures(found: dict[str, torch.Tensor], options: JacobianSpectrumOptions) -> dict[str, Scalar]:
    """One row of the table."""
    largest, least = float(found["largest"]), float(found["least"])
    floor = float(found["floor"]) * largest
    resolved = least > floor and float(found["least_error"]) <= options.tolerance * least
    row: dict[str, Scalar] = {
        "entries": int(found["columns"]),
        "largest": largest,
        "largest_found": float(found["largest_error"]) <= options.tolerance * largest,
        "least": least,
        "least_found": resolved,
        "noise_floor": floor,
        "condition_number": largest / least if resolved else None,
        # An unfinished search gives too large a least value, and rounding hides what is below the floor.
        "condition_number_at_least": largest / max(least, floor) if largest else None,
        "gain": float(found["gain"]),
        "gain_error": float(found["gain_error"]),
    }
    for index, epsilon in enumerate(options.epsilons):
        row[f"null_dimension_{epsilon:g}"] = float(found["dimensions"][index])
        row[f"null_dimension_{epsilon:g}_error"] = float(found["dimension_errors"][index])
    return row


def _summarise(result: Result, sites: Sequence[str], options: JacobianSpectrumOptions) -> None:
    """Medians over prompts by site, and the finding."""
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
        result.notes.append(
            "The least singular value is below the noise floor of the arithmetic (--dtype float64 lowers it), or the "
            "matrix-free search has not converged on it (-o iterations=… finds smaller ones, -o method=dense all), at: "
            f"{', '.join(dict.fromkeys(unresolved))}. There the condition number is a lower bound."
        )
