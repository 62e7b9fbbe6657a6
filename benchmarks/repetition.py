"""`python -m benchmarks.repetition MODEL …`: how much models, and what is decoded from them, repeat themselves.

A model is a name or folder, `NAME:random` the same architecture with random weights, `NAME:int8` the same weights
quantised. One table, models × strategies: the mean and the standard deviation over prompts and seeds of each text's
figure. What does not depend on the seed is run once. With `--tune FILE` the table is that of each model's unlikelihood
fine-tuning on a text, over seeds; with `--decoded`, of the tokens that the gradient inverter recovers, good and poor
ones. Nothing is tuned for one model or left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import probekit
from probekit_plugins.repetition import RepetitionOptions

PROMPTS = [
    "The sky is blue.",
    "Once upon a time",
    "There was a little girl",
    "He said to her",
    "In the morning they",
    "The old man looked at",
]
WINDOW = 128
FIGURES = {
    "seq-rep-1": "seq_rep_1",
    "seq-rep-4": "seq_rep_4",
    "diversity": "diversity",
    f"rep/{WINDOW}": f"rep_{WINDOW}",
}
SAMPLED = ["temperature", "top-k", "nucleus"]
STAGES = ("before", "mle", "unlikelihood")

Rows = list[dict[str, Any]]


def specification(model: str, seed: int) -> dict[str, Any]:
    """The model spec of a name with its suffix."""
    name, _, kind = model.partition(":")
    if kind == "random":
        return {"name": name, "weights": "random", "weights_seed": seed}
    return {"name": name, **({"quantization": kind} if kind else {})}


def result_of(model: str, seed: int, options: dict[str, Any]) -> probekit.Result:
    """One run of the analysis on all prompts."""
    with tempfile.TemporaryDirectory() as folder:
        run = probekit.run(
            model=specification(model, seed),
            plugins="repetition",
            prompts=PROMPTS,
            options={"random_draws": 5, "windows": [WINDOW], "new_tokens": WINDOW, "samples": 1, **options},
            output=Path(folder) / "run",
            seed=seed,
        )
    return run.result


def texts_of(model: str, seeds: int) -> Rows:
    """A row for every text. Trained weights continue a prompt deterministically but where they sample."""
    rows: Rows = []
    for seed in range(seeds):
        again = seed > 0 and not model.endswith(":random")
        found = result_of(model, seed, {"strategies": SAMPLED} if again else {})
        rows += [row for row in found.tables["texts"] if row["kind"] == "generated"]
    return rows


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.2f} ± {pstdev(values):.2f}"


def shown(model: str) -> str:
    """The name of a model without its folder."""
    name, colon, kind = model.partition(":")
    return Path(name).name + colon.replace(":", ", ") + kind


def by_strategy(models: list[str], seeds: int) -> str:
    """The first table in Markdown."""
    lines = [f"| model | strategy | texts | {' | '.join(FIGURES)} |", "| --- | --- |" + " ---: |" * (1 + len(FIGURES))]
    for model in models:
        rows = texts_of(model, seeds)
        for strategy in RepetitionOptions().strategies:
            chosen = [row for row in rows if row["strategy"] == strategy]
            cells = [spread([row[figure] for row in chosen]) for figure in FIGURES.values()]
            lines.append(f"| {shown(model)} | {strategy} | {len(chosen)} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def tuned(models: list[str], seeds: int, text: str, steps: int) -> str:
    """The second table in Markdown: means over prompts, then mean ± standard deviation over seeds."""
    figures = {"NLL": "nll", "unlikelihood": "unlikelihood"}
    strategies = ["greedy", "beam", "nucleus"]
    head = [*(f"held-out {name}" for name in figures), *(f"seq-rep-4, {strategy}" for strategy in strategies)]
    lines = [f"| model | stage | {' | '.join([*head, 'diversity, greedy'])} |", "| --- | --- |" + " ---: |" * 6]
    for model in models:
        options = {"text": text, "text_pieces": 1, "unlikelihood_steps": steps, "strategies": strategies}
        found = [result_of(model, seed, options) for seed in range(seeds)]
        for stage in STAGES:
            prefix = "" if stage == "before" else f"{stage}/"
            names = [f"held out {stage}/{figure}" for figure in figures.values()]
            names += [f"{prefix}{strategy}/seq_rep_4_mean" for strategy in strategies] + [
                f"{prefix}greedy/diversity_mean"
            ]
            cells = [spread([float(result.metrics[name] or 0) for result in found]) for name in names]
            lines.append(f"| {shown(model)} | {stage} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


# The inverter as it comes, and with the settings of its source page, which recover little.
INVERSIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "page's text": {
        "optimizer": "descent",
        "learning_rate": 0.2,
        "decoder": "pseudo-inverse",
        "start_mean": 0.5,
        "start_sigma": 0.05,
    },
    "page's code": {"optimizer": "descent", "learning_rate": 0.2, "decoder": "pseudo-inverse", "start_sigma": 1.0},
    "page's code, nearest": {"optimizer": "descent", "learning_rate": 0.2, "start_sigma": 1.0},
}


def decoded(models: list[str], seeds: int) -> str:
    """The third table in Markdown: seq-rep-1 of recovered sequences, over blocks, prompts, restarts and seeds."""
    head = ["sequences", "seq-rep-1", "random tokens", "the prompts", "above random", "above the prompt"]
    columns = ["sequences", "seq_rep_1_mean", "seq_rep_1_random", "seq_rep_1_prompt", "above_random", "above_prompt"]
    lines = [f"| model | inverter | tokens right | {' | '.join(head)} |", "| --- | --- | --- |" + " ---: |" * len(head)]
    for model in models:
        for name, inversion in INVERSIONS.items():
            found = [_decoded(model, seed, inversion) for seed in range(seeds)]
            for quality, tokens in (("poor", "fewer than half"), ("good", "half or more")):
                rows = [row for rows in found for row in rows if row["quality"] == quality]
                if not rows:
                    continue
                weights = [float(row["sequences"]) for row in rows]
                cells = [f"{sum(weights):.0f}"]
                for column in columns[1:]:
                    total = sum(weight * float(row[column]) for weight, row in zip(weights, rows, strict=True))
                    cells.append(f"{total / sum(weights):.2f}")
                lines.append(f"| {shown(model)} | {name} | {tokens} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    return "\n".join(lines)


def _decoded(model: str, seed: int, inversion: dict[str, Any]) -> Rows:
    options = {
        "gradient-inverter": {"sites": "blocks", "steps": 300, "next_token": False, "top_k": 1, **inversion},
        "repetition": {"strategies": [], "random_draws": 20},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = probekit.run(
            model=specification(model, seed),
            plugins=["gradient-inverter", "repetition"],
            prompts=PROMPTS,
            options=options,
            output=Path(folder) / "run",
            seed=seed,
        )
    if run.failures:
        raise SystemExit("; ".join(run.failures.values()))
    return run.results["repetition"].tables["quality"]


def main() -> None:
    """Measure the models."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repetition", description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tune", metavar="FILE", help="tune on this text instead of comparing strategies")
    parser.add_argument("--decoded", action="store_true", help="recover prompts instead of comparing strategies")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if options.tune:
        print("\n" + tuned(options.models, options.seeds, options.tune, options.steps))
    elif options.decoded:
        print("\n" + decoded(options.models, options.seeds))
    else:
        print("\n" + by_strategy(options.models, options.seeds))


if __name__ == "__main__":
    main()
