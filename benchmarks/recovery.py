"""`python -m benchmarks.recovery MODEL PROMPT`: how much of a prompt each setting of the gradient inverter recovers.

One table, settings × blocks, every restart in it: mean over all restarts, least to most in brackets, and the one that
would be chosen without knowing the prompt (least discrete loss). Nothing is tuned for one model or left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import probekit

PAGE: dict[str, Any] = {"optimizer": "descent", "learning_rate": 0.2, "decoder": "pseudo-inverse"}
SETTINGS: dict[str, dict[str, Any]] = {
    "page's text: descent, η 0.2, N(½, 1/20), pseudo-inverse": {**PAGE, "start_mean": 0.5, "start_sigma": 0.05},
    "page's code: descent, η 0.2, N(0, 1), pseudo-inverse": {**PAGE, "start_sigma": 1.0},
    "the same, nearest": {**PAGE, "start_sigma": 1.0, "decoder": "nearest"},
    "descent, η 0.02, start on the embeddings' scale, nearest": {"optimizer": "descent", "learning_rate": 0.02},
    "Adam, η 0.05, N(0, 1), nearest": {"learning_rate": 0.05, "start_sigma": 1.0},
    "default but pseudo-inverse": {"decoder": "pseudo-inverse"},
    "default: Adam, start and η on the embeddings' scale, nearest": {},
    "default, 1500 steps": {"steps": 1500},
    "default, cosine schedule": {"schedule": "cosine"},
    "default, L2": {"loss": "l2"},
    "default, 1 − cos φ": {"loss": "cosine"},
    "default, embedding box": {"embedding_box": True},
    "L-BFGS, nearest": {"optimizer": "lbfgs"},
    "x in softmax(x)W": {"input_space": "vocabulary-softmax"},
}


def measure(model: str, prompt: str, seed: int) -> str:
    """The table in Markdown."""
    blocks: list[str] = []
    rows: list[str] = []
    for name, options in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = probekit.run(
                model=model,
                prompts=[prompt],
                options={"sites": "blocks", "next_token": False, **options},
                output=Path(folder) / "run",
                seed=seed,
            )
        if run.failures:  # a failure stays in the table
            rows.append(f"| {name} | {'; '.join(run.failures.values())} |")
            continue
        metrics = run.result.metrics
        blocks = [key.removesuffix("/exact_rate") for key in metrics if key.endswith("/exact_rate")]

        def share(site: str, figure: str, metrics: dict[str, Any] = metrics) -> str:
            return f"{100 * metrics[f'{site}/token_accuracy_{figure}']:.0f}"

        cells = [
            f"{share(site, 'mean')} ({share(site, 'min')}–{share(site, 'max')}), {share(site, 'selected')}"
            for site in blocks
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    header = f"| tokens recovered, %: mean (least–most), chosen | {' | '.join(blocks)} |"
    return "\n".join([header, "| --- |" + " ---: |" * len(blocks), *rows])


def main() -> None:
    """Measure one model on one prompt."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("\n" + measure(options.model, options.prompt, options.seed))


if __name__ == "__main__":
    main()
