"""`python -m benchmarks [NAME …] [--quick] [--threads N]`: measure, print the tables, write them down and draw them.

A benchmark that raises does not end the others: it says so in its place, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import (
    batch_size,
    capture,
    compiled,
    exact_recovery,
    graphs,
    inverter_step,
    layer_map_step,
    loading,
    memory,
    placement,
    precisions,
    pseudo_inverse,
    recording,
    report_page,
    restarts,
    run_command,
    sparse_autoencoders,
    studies,
    sweeps,
    text_autoencoder_step,
    walks,
)
from benchmarks.machine import conditions
from benchmarks.outcome import Outcome, Settings
from benchmarks.page import NAME, OUTPUT, html
from benchmarks.peers.known import said
from probekit.files import written_whole

BENCHMARKS: dict[str, Callable[[Settings], Outcome]] = {
    "layer-map-step": layer_map_step.run,
    "capture": capture.run,
    "precisions": precisions.run,
    "restarts": restarts.run,
    "inverter-step": inverter_step.run,
    "compiled": compiled.run,
    "graphs": graphs.run,
    "sweeps": sweeps.run,
    "pseudo-inverse": pseudo_inverse.run,
    "walks": walks.run,
    "memory": memory.run,
    "loading": loading.run,
    "placement": placement.run,
    "exact-recovery": exact_recovery.run,
    "batch-size": batch_size.run,
    "recording": recording.run,
    "report": report_page.run,
    "run-command": run_command.run,
    "studies": studies.run,
    "sparse-autoencoders": sparse_autoencoders.run,
    "text-autoencoder-step": text_autoencoder_step.run,
}


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
    options.output.parent.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    for name in options.names or BENCHMARKS:
        start = time.perf_counter()
        outcomes[name] = contained(name, Settings(quick=options.quick))
        print(outcomes[name].markdown(), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        found = {name: asdict(outcome) for name, outcome in outcomes.items()}
        document = {"conditions": measured_with, "quick": options.quick, "benchmarks": found}
        # After each, so that a run that is ended has what it found.
        with written_whole(options.output) as place:
            place.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    page = options.output.with_name(NAME)
    with written_whole(page) as place:
        place.write_text(html(document), encoding="utf-8")
    print(page)
    if any(outcome.failures for outcome in outcomes.values()):
        sys.exit(1)


def contained(name: str, settings: Settings) -> Outcome:
    """What a benchmark found, or how it failed."""
    try:
        return BENCHMARKS[name](settings)
    except (Exception, SystemExit) as error:  # whatever it is, the others go on
        traceback.print_exc()
        return Outcome(name, failures=[f"{name} raised {said(error)}"])


if __name__ == "__main__":
    main()
