"""Several walks of one run side by side: how far the activation moved at the same input distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy

from probekit_plugins.walks.page import share_of, spread_of, tracks_of

if TYPE_CHECKING:
    from probekit import Page, Result

# What each walk does, for a reader who has not come to its own page yet.
WALKS = {
    "clamped-walk": "shifts some columns of the embeddings by noise and takes back what that changed in the "
    "activation by gradient descent on the others; 'inner' is the number of gradient steps after each shift",
    "null-space-walk": "follows the direction in which the activation changes least, that of the smallest singular "
    "value of its Jacobian",
    "orthogonal-walk": "goes orthogonally to the gradient of the activation's sum, which keeps that sum, not the "
    "activation",
}


@dataclass(frozen=True)
class Way:
    """One track of one walk, for one prompt at one site."""

    walk: str
    track: str
    result: Result
    prefix: str

    @property
    def name(self) -> str:
        return self.walk if len(tracks_of(self.result, controls=False)) == 1 else f"{self.walk} ({self.track})"

    def tensor(self, name: str) -> Any:
        return self.result.tensors[f"{self.prefix}/{name}"]

    def reach(self) -> float:
        """The greatest input distance that each walker came to, the least of them, L2."""
        return float(self.tensor("input_l2").max(0).min())

    def arrival(self, distance: float) -> list[float]:
        """The step at which each walker first is so far away, between recorded steps."""
        steps = self.tensor("steps").astype(float)[:, None]
        return self.at(distance, steps.repeat(self.tensor("input_l2").shape[1], 1), logarithmic=False)

    def at(self, distance: float, values: Any, logarithmic: bool = True) -> list[float]:
        """For each walker, values of the recorded steps at an input distance: interpolated, logarithmically where they
        are positive, at the first step that got there.
        """
        found = []
        for inputs, column in zip(self.tensor("input_l2").T.tolist(), values.T.tolist(), strict=True):
            after = next(index for index, reached in enumerate(inputs) if reached >= distance * (1 - 1e-9))
            if after == 0 or inputs[after] == inputs[after - 1]:
                found.append(column[after])
                continue
            share = (distance - inputs[after - 1]) / (inputs[after] - inputs[after - 1])
            low, high = column[after - 1], column[after]
            if logarithmic and low > 0 and high > 0:
                found.append(low * math.exp(share * math.log(high / low)))
            else:
                found.append(low + share * (high - low))
        return found


def draw(results: Mapping[str, Result], page: Page) -> None:
    """For every prompt and site that at least two of the walks share: a table at the same distance, and the curves."""
    findings: list[str] = []
    places = _places(results)
    known = [f"{name} {WALKS[name]}" for name in results if name in WALKS]
    page.prose(
        "A walk changes the prompt's embeddings step by step, and looks for changes that the activation hardly shows."
        + (f" {'; '.join(known)}." if known else "")
        + "\n\n"
        "Steps of different walks have different lengths, so walks are compared where they are equally far from the "
        "prompt: at the greatest distance d_i that all their walkers have reached, between recorded steps by "
        "interpolation. d_o is how far the activation has moved there, r₂ = d_i / d_o (all in L2), and r₂ over noise's "
        "is how many times as far Gaussian noise of that length moves it. At 1 a walk is no better than noise; the "
        "larger, the less the layer notices."
    )
    for (number, site), names in places.items():
        ways = [
            Way(name, track, results[name], f"{number}/{site}/{track}")
            for name in names
            for track in tracks_of(results[name], controls=False)
        ]
        distance = min(way.reach() for way in ways)
        if distance <= 0:
            page.note(f"At {site}, prompt {number + 1}, one of the walks has not moved.")
            continue
        page.heading(f"{site}, prompt {number + 1}" if len(places) > 1 else site)
        findings.append(_table(ways, page, distance, site, number))
        _curves(ways, page)
    if findings:
        page.finding(findings[0] if len(findings) == 1 else f"{findings[0]} Further prompts and sites are below.")
    else:
        page.note("The walks share no prompt and site at which all of them moved.")


def _places(results: Mapping[str, Result]) -> dict[tuple[int, str], list[str]]:
    """Prompt and site → the walks that went from there, at least two."""
    found: dict[tuple[int, str], list[str]] = {}
    for name, result in results.items():
        for sequence in result.sequences["prompt"]:
            found.setdefault((int(sequence.labels["prompt"] or 0), str(sequence.labels["site"])), []).append(name)
    return {place: names for place, names in found.items() if len(names) > 1}


def _table(ways: list[Way], page: Page, distance: float, site: str, number: int) -> str:
    """One row for each way; returns the finding."""
    rows: list[list[Any]] = []
    shown: list[tuple[float, str]] = []
    for way in ways:
        outputs = way.at(distance, way.tensor("output_l2"))
        ratios = [distance / output for output in outputs if output > 0]
        noise = numpy.median(way.tensor("noise_l2"), axis=-1)
        over = [wild / output for wild, output in zip(way.at(distance, noise), outputs, strict=True) if output > 0]
        changed = way.at(distance, way.tensor("changed"))
        arrived = round(median(way.arrival(distance)), 1)
        rows.append([way.name, *map(_spread, (over, ratios, outputs, changed)), arrived])
        if over:
            shown.append((median(over), way.name))
    scale = _scale(ways[0], number, site)
    share = distance / scale if scale else None
    where = f"d_i = {distance:.3g}" + (f", {share_of(share, share)} the embeddings' norm" if share else "")
    page.table(
        ["walk", "r₂ over noise's", "r₂", "d_o", "tokens changed", "step"],
        rows,
        caption=f"At {where} (median over walkers, least to greatest in brackets)",
    )
    shown.sort(reverse=True)
    return f"At the same distance from the prompt ({where}), Gaussian noise moves the activation at {site} " + (
        ", ".join(f"{ratio:.3g} times as far as {name}" for ratio, name in shown) + "."
    )


def _scale(way: Way, number: int, site: str) -> float | None:
    """`‖e*‖` in L2; None for a result of an earlier version, which has none."""
    rows = way.result.tables.get("prompts", [])
    found = [row["embeddings_l2"] for row in rows if row["prompt"] == number and row["site"] == site]
    return float(found[0] or 0) if found else None


def _spread(values: list[float]) -> str | None:
    return spread_of(median(values), min(values), max(values)) if values else None


def _curves(ways: list[Way], page: Page) -> None:
    """Over the distance, at which walks can be compared, and not over steps."""

    def moved(way: Way, of: Callable[[Way], Any]) -> list[tuple[float, float]]:
        distances, values = way.tensor("input_l2").tolist(), of(way).tolist()
        return [(median(x), median(y)) for x, y in zip(distances, values, strict=True) if median(y) > 0]

    def noise(way: Way) -> Any:
        return numpy.median(way.tensor("noise_l2"), axis=-1)

    def over_noise(way: Way) -> Any:
        return numpy.divide(
            noise(way), way.tensor("output_l2"), where=way.tensor("output_l2") > 0, out=numpy.zeros_like(noise(way))
        )

    farthest = max(ways, key=Way.reach)
    page.lines(
        {way.name: moved(way, over_noise) for way in ways},
        x="d_i, L2",
        y="r₂ over noise's",
        caption="r₂ over noise's, by distance from the prompt (medians over walkers; higher is better, 1 is noise)",
        log_y=True,
    )
    page.lines(
        {
            **{way.name: moved(way, lambda each: each.tensor("output_l2")) for way in ways},
            "Gaussian noise": moved(farthest, noise),
        },
        x="d_i, L2",
        y="d_o, L2",
        caption="How far the activation moves, by distance from the prompt (medians over walkers; lower is better)",
        log_y=True,
    )
