"""`python -m benchmarks [NAME …] [--quick] [--threads N]`: measure, print the tables, and write them down."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import (
    exact_recovery,
    layer_map_step,
    memory,
    placement,
    pseudo_inverse,
    recording,
    report_page,
    restarts,
    sparse_autoencoders,
    text_autoencoder_step,
    walks,
)
from benchmarks.machine import conditions
from benchmarks.outcome import Outcome, Settings

BENCHMARKS: dict[str, Callable[[Settings], Outcome]] = {
    "layer-map-step": layer_map_step.run,
    "restarts": restarts.run,
    "pseudo-inverse": pseudo_inverse.run,
    "walks": walks.run,
    "memory": memory.run,
    "placement": placement.run,
    "exact-recovery": exact_recovery.run,
    "recording": recording.run,
    "report": report_page.run,
    "sparse-autoencoders": sparse_autoencoders.run,
    "text-autoencoder-step": text_autoencoder_step.run,
}
OUTPUT = Path("reports/output/bench/latest.json")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed and memory of probekit.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a few rounds: shows that it works, not how fast")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"where to write the figures ({OUTPUT})")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are: {', '.join(BENCHMARKS)}")
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}; expected at least 1")
    torch.set_num_threads(options.threads)
    measured_with = conditions()
    print(", ".join(f"{what} {value}" for what, value in measured_with.items()), end="\n\n")
    outcomes: dict[str, Outcome] = {}
    for name in options.names or BENCHMARKS:
        start = time.perf_counter()
        outcomes[name] = BENCHMARKS[name](Settings(quick=options.quick))
        print(outcomes[name].markdown(), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    found = {name: asdict(outcome) for name, outcome in outcomes.items()}
    document = {"conditions": measured_with, "quick": options.quick, "benchmarks": found}
    options.output.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
