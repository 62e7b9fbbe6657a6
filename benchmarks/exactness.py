"""`python -m benchmarks.exactness`: how exact the exact inverter is, for every block of some models in every precision.

A row for each block: how many prompts came back whole, how many tokens were right, verified, tied and verified wrongly,
how many candidates that took, and the least margin: how near the nearest rival of any token came, relative to the norm
of the activation, beside ε, within which an activation matches. Prompts are pieces of a text, evenly spread, and those
of GPT-2, whose weights are random, uniformly random tokens. With `--many N`, N such prompts and N random ones at the
last block only. Nothing is tuned for one model or left out: a case that fails is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

import probekit
from benchmarks.inverters import learnt, targets_of
from benchmarks.machine import conditions
from benchmarks.texts import PLAYS, STORIES, cut, data, drawn, missing
from probekit_plugins.exact_inverter.figures import figures, rows_of
from probekit_plugins.exact_inverter.inversion import add_prompts, recovered, store

OUTPUT = Path("reports/output/bench/exactness.json")
TOKENS = 20
TEXTS = [Path(text).stem for text in (STORIES, PLAYS)]
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}
COLUMNS = {
    "exact": "exact, %",
    "right": "tokens right, %",
    "verified": "verified, %",
    "tied": "tied",
    "wrong": "verified wrongly",
    "candidates": "candidates a token",
    "most": "most",
    "margin": "least margin",
    "bound": "ε",
    "seconds": "s a prompt",
    "learning": "s to learn",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What is inverted: which model, on pieces of which texts, and at which blocks if not at all of them."""

    path: str
    texts: tuple[str, ...] = (STORIES,)
    blocks: tuple[int, ...] = ()


MODELS = {
    "demo": Model("demo", (STORIES, PLAYS)),
    "stories260k": Model("models/stories260k"),
    "tinystories-656k": Model("models/tinystories-656k"),
    "gpt2": Model("gpt2", (), (0, 5, 11)),
}


@contextmanager
def loaded(model: Model, precision: str) -> Iterator[probekit.Subject]:
    """The model in that precision. Raises FileNotFoundError if it is not among the test data."""
    options = PRECISIONS[precision]
    if model.path == "gpt2":
        with tempfile.TemporaryDirectory() as folder:
            GPT2Config().save_pretrained(folder)
            yield probekit.load(folder, weights="random", weights_seed=0, **options)
    elif model.path == "demo":
        yield probekit.load("demo", **options)
    else:
        path = data(model.path)
        if path is None:
            raise FileNotFoundError(missing(model.path))
        yield probekit.load(path, **options)


def prompts_of(
    subject: probekit.Subject, model: Model, count: int, texts: Sequence[str], many: bool
) -> dict[str, torch.Tensor]:
    """Prompts `[count, tokens]` by what they are. Raises FileNotFoundError if a text is not there."""
    found = {}
    for text in model.texts:
        if Path(text).stem not in texts:
            continue
        path = data(text)
        if path is None:
            raise FileNotFoundError(missing(text))
        found[path.stem] = cut(subject, path, count, TOKENS)
    if many or not model.texts:
        found["random tokens"] = drawn(subject, count, TOKENS)
    return found


def at_site(subject: probekit.Subject, site: str, prompts: torch.Tensor) -> tuple[Row, list[Row]]:
    """The figures of one site, and what there is to say of each prompt that did not come back whole and verified."""
    context, targets = probekit.Context(), targets_of(subject, site, prompts)
    inverter = learnt(subject, site, targets, context)
    found = recovered(inverter, targets, context, site)
    result = probekit.Result()
    add_prompts(result, subject, targets, {})
    store(result, subject, site, {"site": site}, targets, found)
    places, of_prompts = rows_of(result, site, result.sequences["recovered"])
    each = figures(of_prompts, places)
    row = {
        "prompts": len(found),
        "exact": each["exact_rate"],
        "right": each["token_accuracy"],
        "verified": each["verified_share"],
        "tied": sum(int(one["tied"] or 0) for one in of_prompts),
        "wrong": each["false_positives"],
        "candidates": each["candidates_per_token"],
        "most": each["candidates_most"],
        "margin": each["margin_least"],
        "bound": inverter.error,
        "seconds": sum(one.seconds + one.seconds_of_proof for one in found) / len(found),
        "search": sum(one.seconds for one in found) / len(found),
        "learning": inverter.seconds,
    }
    incomplete = [
        {
            "prompt": number,
            "ids": target.truth,
            "recovered": recovery.ids,
            "statuses": [str(verdict.status) for verdict in recovery.verdicts],
            "ties": [verdict.ties for verdict in recovery.verdicts],
            "reasons": recovery.reasons,
        }
        for number, (target, recovery) in enumerate(zip(targets, found, strict=True))
        if recovery.ids != target.truth or any(verdict.status != "verified" for verdict in recovery.verdicts)
    ]
    return row, incomplete


def measure(
    names: Sequence[str],
    precisions: Sequence[str],
    count: int,
    blocks: Sequence[int] | None,
    texts: Sequence[str],
    many: bool,
) -> Iterator[Row]:
    """A row for each precision, model, text and block; what fails is a row with the error."""
    for precision in precisions:
        for name in names:
            case: Row = {"model": name, "precision": precision}
            model = MODELS[name]
            try:
                with loaded(model, precision) as subject:
                    sites = subject.expand_sites("every-block")
                    chosen = (-1,) if many else blocks or model.blocks or range(len(sites))
                    for text, prompts in prompts_of(subject, model, count, texts, many).items():
                        for site in (sites[block] for block in chosen):
                            here = case | {"prompts of": text, "site": site}
                            try:
                                row, incomplete = at_site(subject, site, prompts)
                                yield here | row | {"incomplete": incomplete}
                            except Exception as error:
                                yield here | {"error": _said(error)}
            except Exception as error:
                yield case | {"error": _said(error)}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


HEAD = ["model", "precision", "prompts of", "site", "prompts"]


def line(row: Row) -> str:
    """The row of a Markdown table."""
    cells = [str(row.get(column, "")) for column in HEAD]
    if "error" in row:
        return "| " + " | ".join([*cells, str(row["error"]).replace("|", "/")]) + " |"
    for name in COLUMNS:
        value = row[name]
        if value is None:
            cells.append("–")
        elif name in ("exact", "right", "verified"):
            cells.append(f"{100 * value:.4g}")
        elif name in ("tied", "wrong", "most"):
            cells.append(f"{value:.0f}")
        else:
            cells.append(f"{value:.3g}")
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print each row as it is there, and write them all down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of: {', '.join(MODELS)}")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each text (100)")
    parser.add_argument("--dtypes", default=",".join(PRECISIONS), help=f"some of: {', '.join(PRECISIONS)}")
    parser.add_argument("--blocks", default="all", help="numbers of blocks, such as 0,5,11; GPT-2's are these three")
    parser.add_argument("--texts", default=",".join(TEXTS), help=f"some of: {', '.join(TEXTS)}")
    parser.add_argument("--many", action="store_true", help="the last block only, and random prompts beside the text's")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"where to write the rows ({OUTPUT})")
    options = parser.parse_args(arguments)
    names, precisions = options.models.split(","), options.dtypes.split(",")
    texts = options.texts.split(",")
    for given, there in ((names, MODELS), (precisions, PRECISIONS), (texts, TEXTS)):
        if unknown := [name for name in given if name not in there]:
            parser.error(f"there is no '{unknown[0]}'; there are: {', '.join(there)}")
    blocks = None if options.blocks == "all" else [int(block) for block in options.blocks.split(",")]
    torch.set_num_threads(1)
    measured_with, start, rows = conditions(), time.perf_counter(), []
    print("| " + " | ".join([*HEAD, *COLUMNS.values()]) + " |")
    print("|" + " --- |" * (len(HEAD) + len(COLUMNS)), flush=True)
    for row in measure(names, precisions, options.prompts, blocks, texts, options.many):
        rows.append(row)
        print(line(row), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        document = {"conditions": measured_with, "seconds": time.perf_counter() - start, "rows": rows}
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
