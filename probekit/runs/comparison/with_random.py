"""The same configuration with trained and with random weights, and their comparison: what is it that training adds?"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probekit.analysis import Listener
from probekit.analysis.context import Silent
from probekit.errors import UsageError
from probekit.plugins import Plugins
from probekit.runs.checkpoints import SECONDS_BETWEEN_SAVES
from probekit.runs.command import command_line
from probekit.runs.comparison.outcome import Comparison, write_comparison
from probekit.runs.comparison.sides import read_sides
from probekit.runs.config import Resolved
from probekit.runs.execute import default_output, execute
from probekit.runs.outcome import Run

FLAG = "--compare-random"
PAGE = "comparison.html"


@dataclass(frozen=True)
class TrainedAndRandom:
    """Both runs; `comparison` is None where no analysis came to its end in both."""

    trained: Run
    random: Run
    comparison: Comparison | None

    def _repr_html_(self) -> str:
        """What a notebook shows: the comparison, or both runs where there is none."""
        shown = [self.trained, self.random] if self.comparison is None else [self.comparison]
        return "".join(each._repr_html_() for each in shown)

    @property
    def runs(self) -> dict[str, Run]:
        return {"trained": self.trained, "random": self.random}

    @property
    def failures(self) -> dict[str, str]:
        """The sentence of each analysis that failed, by run and analysis."""
        return {
            f"{name} with {weights} weights": text
            for weights, run in self.runs.items()
            for name, text in run.failures.items()
        }

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit run --compare-random --json` prints."""
        return {
            "runs": {weights: run.document() for weights, run in self.runs.items()},
            "comparison": None if self.comparison is None else str(self.comparison.path),
            "status": "failed" if self.failures else "done",
        }


def check_trained(resolved: Resolved) -> None:
    """Raise UsageError if the configuration asks for random weights: nothing would be compared."""
    if resolved.config.activations is not None:
        raise UsageError(f"{FLAG} loads the model twice, and a recording is of one; leave one of the two out.")
    if resolved.config.model.weights == "random":
        source = resolved.sources.get("model.weights", "configuration")
        raise UsageError(
            f"{FLAG} makes a run with random weights beside one with trained weights, but random weights are asked for "
            f"already ({source}); leave one of the two out."
        )


def run_trained_and_random(
    resolved: Resolved,
    plugins: Plugins,
    output: Path | None = None,
    listener: Listener | None = None,
    argv: Sequence[str] = (),
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
    time_limit: float | None = None,
) -> TrainedAndRandom:
    """Carry out a configuration as it is in `output/trained`, with random weights in `output/random`, and compare them
    in `output/comparison.html`.

    Raises UsageError if the configuration has random weights already or `output` exists and is not empty, and
    everything that `execute` raises.
    """
    check_trained(resolved)
    folder = output or default_output(resolved, "-trained+random")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"The output directory '{folder}' exists and is not empty; choose another, or remove it.")
    listener = listener or Silent()
    existed = folder.exists()
    outcomes = []
    for name, configured in (("trained", resolved), ("random", _with_random_weights(resolved))):
        listener.message(f"With {name} weights")
        try:
            place = folder / name
            outcomes.append(execute(configured, plugins, place, listener, argv, seconds_between_saves, time_limit))
        except KeyboardInterrupt:
            for command in _left_to_do(resolved, folder):
                listener.message(f"After that: {command}")
            raise
        except BaseException:
            if not existed:
                with suppress(OSError):
                    folder.rmdir()  # only where nothing is in it: a run that is there stays
            raise
    trained, random = outcomes
    comparison = None
    if set(trained.results) & set(random.results):
        sides = read_sides([trained.path, random.path])
        comparison = write_comparison(sides, folder / PAGE, f"{command_line(resolved)} {FLAG}")
    return TrainedAndRandom(trained, random, comparison)


def _left_to_do(resolved: Resolved, folder: Path) -> list[str]:
    """The commands that complete an interrupted pair, once the run that was interrupted has been resumed."""
    if not folder.is_dir():
        return []
    paths = [str(folder / name) for name in ("trained", "random")]
    second = (
        []
        if (folder / "random").exists()
        else [f"{command_line(_with_random_weights(resolved))} --output {shlex.quote(paths[1])}"]
    )
    return [*second, shlex.join(["probekit", "compare", *paths, "--output", str(folder / PAGE)])]


def _with_random_weights(resolved: Resolved) -> Resolved:
    model = resolved.config.model.model_copy(update={"weights": "random"})
    config = resolved.config.model_copy(update={"model": model})
    return replace(resolved, config=config, sources={**resolved.sources, "model.weights": FLAG})
