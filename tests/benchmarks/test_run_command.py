"""What the benchmark of `probekit run` counts as outside importing, the model and the steps."""

from __future__ import annotations

from typing import Any

from benchmarks.outcome import Outcome
from benchmarks.run_command import FIRST, PLAIN, PROFILED, Finished, _told


def profile(drawing: float) -> dict[str, Any]:
    seconds = {
        "start-up of Python": 0.5,
        "importing packages": 4.5,
        "loading the model": 0.25,
        "gradient-inverter": 3.0,
        "the profile itself": 0.5,
        "drawing the report": drawing,
    }
    spans = [("loop", 2.5), ("stage", 2.75)]
    return {
        "seconds": sum(seconds.values()),
        "phases": [{"name": name, "seconds": each, "cpu_seconds": each} for name, each in seconds.items()],
        "imports": {"asked": {"torch": 1.5, "transformers": 2.5, "accelerate": 0.5}, "own": {}},
        "spans": [{"kind": kind, "own_seconds": own} for kind, own in spans],
        "threads": 1,
    }


def test_what_is_left_is_neither_imports_of_both_nor_model_nor_steps_nor_the_profile() -> None:
    run = Finished(9.5, 9.0, profile(0.25))
    # The start 0.5, accelerate 0.5, the analysis outside of its loop 0.5, the drawing 0.25.
    assert run.outside == 1.75
    assert (run.imports, run.steps) == (4.0, 2.5)


def test_goals_are_held_against_a_run_as_it_is_and_not_the_first_on_a_machine() -> None:
    rounds = {
        PLAIN: [Finished(11.0, 9.0, None)] * 2,
        PROFILED: [Finished(11.5, 9.25, profile(0.25))] * 2,
        FIRST: [Finished(15.0, 11.0, profile(3.5))] * 2,
    }
    outcome = _told(Outcome("run"), rounds)
    goals = {figure.what: (figure.value, figure.met) for figure in outcome.figures if figure.goal is not None}
    assert goals["a run: all of the process"] == (11.0, True)
    assert goals["with --profile: outside importing torch and transformers, the model and the steps"] == (1.75, True)
    assert goals["--profile / without: processor time"] == (9.25 / 9, True)
    assert not any(what.startswith(FIRST) for what in goals)
