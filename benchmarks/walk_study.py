"""`python -m benchmarks.walk_study clamped|together MODEL … --prompt TEXT …`: what the walks find, as Markdown tables.

`clamped`: r and r against noise for 1, 5, 10 and 50 inner steps, over a sweep of noises and learning rates that is the
same for every model and is printed whole; nothing is tuned for one model or left out. `together`: every walk at the
same input distance. Figures are medians over prompts × walkers, least to greatest in brackets.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy

import probekit
from probekit_plugins.walks.comparison import Way
from probekit_plugins.walks.page import tracks_of

INNER = (1, 5, 10, 50)
# Of the noise, over the standard deviation of the embedding matrix; and of the first gradient step over the shift.
NOISES = (0.05, 0.5)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
PAGE = {"steps": 10, "noise": 2e-4, "inner": [1, 5, 10, 31, 50], "learning_rate": 2e-5}
WALKS = ("orthogonal-walk", "clamped-walk", "null-space-walk")


@contextmanager
def walked(
    model: dict[str, Any], plugins: Sequence[str], prompts: Sequence[str], seed: int, options: dict[str, Any]
) -> Iterator[probekit.Run]:
    """A run in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        ids = [[464, 6766, 318, 4171, 13]] if not prompts else []
        yield probekit.run(
            model=model,
            plugins=list(plugins),
            prompts=list(prompts),
            input_ids=ids,
            options=options,
            seed=seed,
            output=Path(folder) / "run",
        )


def spread(values: Sequence[float]) -> str:
    """`median (least–greatest)`."""
    return f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})" if values else "–"


def clamped(
    model: dict[str, Any], prompts: Sequence[str], seed: int, steps: int, walkers: int, site: str
) -> Iterator[str]:
    """One row a setting: r₁ for each number of inner steps, then r₁ over that of noise, then the same in L2."""
    common = {"walkers": walkers, "sites": site, "noise_draws": 2, "record_every": steps}
    settings: dict[str, dict[str, Any]] = {"page's code: 10 steps, noise 2e-4, ε 2e-5": PAGE}
    for share in NOISES:
        for rate in RATES:
            settings[f"{steps} steps, noise {share:g} σ, rate {rate:g}"] = {
                "steps": steps,
                "inner": list(INNER),
                "relative_rate": rate,
                "relative_noise": share,
            }
    yield "| setting | figure | " + " | ".join(f"inner {inner}" for inner in INNER) + " |"
    yield "| --- | --- |" + " ---: |" * len(INNER)
    for name, setting in settings.items():
        options = {**common, **setting}
        if options["steps"] != steps:
            options["record_every"] = options["steps"]
        with walked(model, ["clamped-walk"], prompts, seed, options) as run:
            rows = run.results["clamped-walk"].tables["walkers"] if run.results else []
            failure = "; ".join(run.failures.values())
        for figure, label in (
            ("r_l1", "r₁"),
            ("r_over_noise_l1", "r₁ / noise's"),
            ("r_l2", "r₂"),
            ("r_over_noise_l2", "r₂ / noise's"),
        ):
            cells = [
                spread([float(value) for row in rows if row["track"] == f"inner {inner}" and (value := row[figure])])
                for inner in INNER
            ]
            yield f"| {name} | {label} | {failure or ' | '.join(cells)} |"


def together(
    model: dict[str, Any], prompts: Sequence[str], seed: int, steps: int, walkers: int, site: str
) -> Iterator[str]:
    """One row a walk, at the greatest input distance that all of them reach."""
    common = {"walkers": walkers, "sites": site, "steps": steps, "record_every": 1, "noise_draws": 2}
    options: dict[str, Any] = {name: dict(common) for name in WALKS}
    options["clamped-walk"]["inner"] = list(INNER)
    yield "| walk | d_i, L2 | d_o, L2 | r₂ | r₂ over noise's |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    with walked(model, WALKS, prompts, seed, options) as run:
        ways: dict[str, list[Way]] = {}
        for name, result in run.results.items():
            for track in tracks_of(result, controls=False):
                for number in range(len(prompts) or 1):
                    canonical = str(result.sequences["prompt"][0].labels["site"])
                    way = Way(name, track, result, f"{number}/{canonical}/{track}")
                    ways.setdefault(way.name, []).append(way)
        failures = dict(run.failures)
    distance = min(way.reach() for group in ways.values() for way in group)
    for name, group in ways.items():
        outputs = [value for way in group for value in way.at(distance, way.tensor("output_l2"))]
        wild = [value for way in group for value in way.at(distance, numpy.median(way.tensor("noise_l2"), axis=-1))]
        over = [noise / output for noise, output in zip(wild, outputs, strict=True)]
        ratios = [distance / output for output in outputs]
        yield f"| {name} | {distance:.3g} | {spread(outputs)} | {spread(ratios)} | {spread(over)} |"
    for name, sentence in failures.items():
        yield f"| {name} | {sentence} |"


def main() -> None:
    """Print the tables of one study for some models."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walk_study", description=__doc__)
    parser.add_argument("study", choices=["clamped", "together"])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--prompt", action="append", default=[], help="repeatable; without one, five token ids")
    parser.add_argument("--weights", choices=["pretrained", "random"], default="pretrained")
    parser.add_argument("--site", default="block.-1")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--walkers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    study = clamped if options.study == "clamped" else together
    for name in options.models:
        print(f"\n{name}, {options.weights}, {options.site}, {options.walkers} walkers from each prompt\n", flush=True)
        model = {"name": name, "weights": options.weights}
        for line in study(model, options.prompt, options.seed, options.steps, options.walkers, options.site):
            print(line, flush=True)


if __name__ == "__main__":
    main()
