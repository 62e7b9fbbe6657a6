"""What is measured of a layer's Jacobian: all of its singular values, or products with it for estimates of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from probekit import Result, TokenSequence
from probekit_plugins.batches import Batches
from probekit_plugins.jacobian import Jacobian, bidiagonalise, dense
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, Prompt, Subject
    from probekit_plugins.jacobian_spectrum import JacobianSpectrumOptions

# The bases of the probes that are computed together take about so much memory.
BASIS_BYTES = 1 << 31
# For each probe, so many draws measure what its basis leaves out of ‖J‖_F.
OUTSIDE_DRAWS = 8
# And a dense Jacobian at most so much.
DENSE_BYTES = 1 << 30


def run(subject: Subject, prompts: Sequence[Prompt], options: JacobianSpectrumOptions, context: Context) -> Result:
    """What is measured at every site for each prompt. Raises AnalysisError if an activation is not finite."""
    sites = subject.expand_sites(options.sites)
    batches = Batches(context)
    result = Result(sequences={"prompt": []})
    for number, prompt in enumerate(prompts):
        result.sequences["prompt"].append(
            TokenSequence(prompt.input_ids[0].tolist(), prompt.tokens, {"prompt": number, "sites": ",".join(sites)})
        )
        for site in sites:
            place = Place(subject, prompt, site)
            is_dense = options.method == "dense" or (options.method == "auto" and place.fits(options.dense_entries))
            key = f"{number}/{site}"
            found = context.stage(key, partial(_measured, place, is_dense, options, context, key, batches))
            batches.limit(int(found["halved_to"]))  # as it was, where it is read back
            result.tensors |= {f"{key}/{name}": tensor for name, tensor in found.items() if name != "halved_to"}
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
    return {"values": values, "shares": torch.arange(1, place.columns + 1, dtype=torch.float64) / place.columns}


def _matrix_free(
    place: Place, options: JacobianSpectrumOptions, context: Context, key: str, batches: Batches
) -> dict[str, torch.Tensor]:
    """P probes, each a bidiagonalisation of k steps from a random vector.

    `values` are the singular values θ of all their bidiagonal matrices, falling, `shares` the sums of their weights τ
    so far over P (the squared first entries of the right singular vectors), and `probes` says whose each is, `[P k]`.
    `residuals` `[P, 2]` are those of a probe's greatest and least θ, and `squares` `[P]` its estimates of `‖J‖_F²`.
    """
    count = min(options.iterations, place.columns)
    at_once = max(1, BASIS_BYTES // (count * (place.columns + place.rows) * 8))

    def probed(chosen: slice) -> dict[str, torch.Tensor]:
        drawn = [context.generator(f"{key}/probe {probe}") for probe in range(chosen.start, chosen.stop)]
        with context.progress(key, count) as progress:
            return _probe(place, count, drawn, progress.step)

    parts = batches.parts(options.probes, probed, key, at_once)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    values, weights = joined["values"].flatten(), joined["weights"].flatten()
    order = values.argsort(descending=True, stable=True)
    return {
        "values": values[order],
        "shares": weights[order].cumsum(0) / options.probes,
        "probes": (order // count).int(),
        "residuals": joined["residuals"][:, [0, -1]],
        "squares": joined["squares"],
    }


def _probe(
    place: Place, count: int, generators: Sequence[torch.Generator], step: Callable[[], None]
) -> dict[str, torch.Tensor]:
    """Bidiagonalisations from some random vectors at once, and the energy of J in and outside of their bases:
    `‖J‖_F² = ‖B‖_F² + E ‖J (I − V Vᵀ) z‖²` with z standard normal (Hutch++: Meyer et al. 2021).
    """

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
