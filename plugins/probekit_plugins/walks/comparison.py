"""Several walks of one run side by side: how far the activation moved at the same input distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy

from probekit_plugins.walks.page import noise_band, ratio_band, spread_of, tracks_of

if TYPE_CHECKING:
    from probekit import Page, Result


@dataclass(frozen=True)
class Way:
    """One track of one walk, for one prompt at one site."""

    walk: str
    track: str
    result: Result
    prefix: str

    @property
    def name(self) -> str:
        return self.walk if len(tracks_of(self.result, controls=False)) == 1 else f"{self.walk}, {self.track}"

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
    page.prose(
        "Walks of different kinds take steps of different lengths, so they are compared where they are equally far "
        "from the prompt: at the greatest input distance d_i (L2) that all their walkers have reached, interpolated "
        "between recorded steps. r = d_i / d_o; r / r of noise is how much farther the activation moves for Gaussian "
        "noise of that length."
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
        findings.append(_table(ways, page, distance, site))
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


def _table(ways: list[Way], page: Page, distance: float, site: str) -> str:
    """One row for each way; returns the finding."""
    rows: list[list[Any]] = []
    shown: list[tuple[float, str]] = []
    for way in ways:
        outputs = way.at(distance, way.tensor("output_l2"))
        ratios = [distance / output for output in outputs if output > 0]
        noise = numpy.median(way.tensor("noise_l2"), axis=-1)
        over = [wild / output for wild, output in zip(way.at(distance, noise), outputs, strict=True) if output > 0]
        changed = way.at(distance, way.tensor("changed"))
        rows.append([way.name, _spread(way.arrival(distance)), *map(_spread, (outputs, ratios, over, changed))])
        if ratios:
            shown.append((median(ratios), way.name))
    page.table(
        ["walk", "reached at step", "d_o, L2", "r₂", "r₂ / r₂ of noise", "tokens that differ"],
        rows,
        caption=f"At d_i = {distance:.3g} (L2): median over walkers, least to greatest in brackets",
    )
    shown.sort(reverse=True)
    return (
        f"At {site} and the same input distance ({distance:.3g}), r₂ is "
        + ", ".join(f"{ratio:.3g} for {name}" for ratio, name in shown)
        + "."
    )


def _spread(values: list[float]) -> str | None:
    return spread_of(median(values), min(values), max(values)) if values else None


def _curves(ways: list[Way], page: Page) -> None:
    def middle(way: Way, name: str) -> list[tuple[float, float]]:
        distances, values = way.tensor("input_l2").tolist(), way.tensor(name).tolist()
        return [(median(x), median(y)) for x, y in zip(distances, values, strict=True) if median(y) > 0]

    page.lines(
        {way.name: middle(way, "output_l2") for way in ways},
        x="d_i, L2",
        y="d_o, L2",
        caption="How far the activation moved, against how far the input did: medians over walkers",
        log_y=True,
    )
    page.band(
        {way.name: ratio_band(way.result, way.prefix, "l2") for way in ways},
        x="step",
        y="r, L2",
        caption="r = d_i / d_o over steps: median and range over walkers",
        log_y=True,
    )
    page.band(
        {way.name: noise_band(way.result, way.prefix) for way in ways},
        x="step",
        y="r / r of noise, L2",
        caption="r against noise of the same input distance over steps; 1 is no better than noise",
        log_y=True,
    )
