"""How much of a prompt each setting of the gradient inverter recovers.

`python -m benchmarks.recovery MODEL PROMPT`: one prompt, one table, settings × blocks.
`python -m benchmarks.recovery MODEL --text FILE`: pieces of a text, one site, each part of the strong settings by
itself and all of them together, beside the source page's own settings.

Every restart is in the tables: the mean over all of them, least to most in brackets, and the one that would be chosen
without knowing the prompt (least discrete loss). Nothing is tuned for one model or left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import probekit

PAGE: dict[str, Any] = {"optimizer": "descent", "learning_rate": 0.2, "decoder": "pseudo-inverse"}
SETTINGS: dict[str, dict[str, Any]] = {
    "page's text: descent, η 0.2, N(½, 1/20), pseudo-inverse": {"settings": "page"},
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
STRONG: dict[str, Any] = {"settings": "strong", "compare_page": False}
PARTS: dict[str, dict[str, Any]] = {
    "page: descent, η 0.2, N(½, 1/20), L1, pseudo-inverse": {"settings": "page"},
    "default: Adam, N(0, σ of the embeddings), L1, nearest": {},
    "default, L2": {"loss": "l2"},
    "default, pull λ = 0.01": {"nearest_pull": 0.01},
    "default, pull λ = 1": {"nearest_pull": 1.0},
    "default, box": {"embedding_box": True},
    "default, warm start": {"start": "regression"},
    "default, re-scoring of 32": {"rescore": 32},
    "L-BFGS, L2": {"optimizer": "lbfgs", "loss": "l2", "schedule": "constant"},
    "strong: warm start, L2, box, re-scoring of 32": STRONG,
    "strong, pull λ = 0.01": {**STRONG, "nearest_pull": 0.01},
    "strong, L-BFGS": {**STRONG, "optimizer": "lbfgs", "schedule": "constant"},
}
PIECES = 20
TOKENS = 20


def measure(model: str, prompt: str, seed: int) -> str:
    """Settings × blocks for one prompt, in Markdown."""
    blocks: list[str] = []
    rows: list[str] = []
    for name, options in SETTINGS.items():
        run = _run(model, {"sites": "blocks", **options}, seed, prompts=[prompt])
        if run.failures:  # a failure stays in the table
            rows.append(f"| {name} | {'; '.join(run.failures.values())} |")
            continue
        metrics = run.result.metrics
        blocks = [key.removesuffix("/exact_rate") for key in metrics if key.endswith("/exact_rate")]
        rows.append(f"| {name} | {' | '.join(_cell(metrics, f'{site}/token_accuracy') for site in blocks)} |")
        print(rows[-1], flush=True)
    return _table("tokens recovered, %: mean (least–most), chosen", blocks, rows)


def measure_parts(
    model: str, text: Path, seed: int, site: str, steps: int, restarts: int, pieces: int, only: Sequence[str]
) -> str:
    """What each part of the strong settings does for pieces of a text, and all together, in Markdown."""
    input_ids = cut(model, text, pieces)
    rows: list[str] = []
    for name, options in PARTS.items():
        if only and not any(part in name for part in only):
            continue
        began = time.perf_counter()
        same = {"sites": site, "steps": steps, "restarts": restarts, "top_k": 1, "record_every": steps}
        run = _run(model, {**same, **options}, seed, input_ids=input_ids)
        took = time.perf_counter() - began
        if run.failures:
            rows.append(f"| {name} | {'; '.join(run.failures.values())} | | | | {took:.0f} |")
            continue
        metrics = run.result.metrics
        at = next(key.removesuffix("/exact_rate") for key in metrics if key.endswith("/exact_rate"))
        rescored = options.get("rescore", 0) or options.get("settings") == "strong"
        cells = [
            _cell(metrics, f"{at}/token_accuracy"),
            _cell(metrics, f"{at}/rescored_token_accuracy") if rescored else "",
            f"{100 * float(metrics[f'{at}/exact_rate'] or 0):.0f}",
            f"{100 * float(metrics[f'{at}/rescored_exact_rate'] or 0):.0f}" if rescored else "",
            f"{took:.0f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    columns = ["decoded", "re-scored", "exact", "exact, re-scored", "seconds"]
    return _table("tokens recovered, %: mean (least–most), chosen", columns, rows)


def cut(model: str, text: Path, pieces: int) -> list[list[int]]:
    """So many pieces of a text, evenly spread, each of `TOKENS` tokens with what the tokenizer begins a text with."""
    subject = probekit.load(model)
    assert subject.tokenizer is not None
    plain, whole = (subject.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = whole[: len(whole) - len(plain)]
    own = TOKENS - len(start)
    ids = subject.tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    whole_pieces = len(ids) // own
    return [[*start, *ids[at * own : (at + 1) * own]] for at in (n * whole_pieces // pieces for n in range(pieces))]


def _run(model: str, options: dict[str, Any], seed: int, **inputs: Any) -> probekit.Run:
    with tempfile.TemporaryDirectory() as folder:
        given = {"next_token": False, **options}
        return probekit.run(model=model, options=given, output=Path(folder) / "run", seed=seed, **inputs)


def _cell(metrics: dict[str, Any], name: str) -> str:
    mean, least, most, chosen = (100 * metrics[f"{name}_{figure}"] for figure in ("mean", "min", "max", "selected"))
    return f"{mean:.0f} ({least:.0f}–{most:.0f}), {chosen:.0f}"


def _table(corner: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join([f"| {corner} | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns), *rows])


def main() -> None:
    """Measure one model on one prompt, or on pieces of a text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("prompt", nargs="?", default="The sky is blue.")
    parser.add_argument("--text", type=Path, help="measure the parts of the strong settings on pieces of this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--site", default="block.-1", help="with --text")
    parser.add_argument("--steps", type=int, default=200, help="with --text")
    parser.add_argument("--restarts", type=int, default=2, help="with --text")
    parser.add_argument("--pieces", type=int, default=PIECES, help="with --text")
    parser.add_argument("--only", nargs="*", default=[], help="with --text: settings whose name has one of these in it")
    options = parser.parse_args()
    if options.text is None:
        print("\n" + measure(options.model, options.prompt, options.seed))
        return
    parts = (options.site, options.steps, options.restarts, options.pieces, options.only)
    print("\n" + measure_parts(options.model, options.text, options.seed, *parts))


if __name__ == "__main__":
    main()
