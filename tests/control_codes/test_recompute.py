"""The figures of a saved result follow from its tensors and token sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import probekit
from probekit.runs.directory import RunDirectory
from probekit.runs.recompute import recompute
from probekit_plugins.control_codes import ControlCodes, ControlCodesOptions
from tests.analyses.recomputing import assert_figures_follow

DRAWN = {"temperature": 1.0, "samples": 2, "new_tokens": 5}
OPTIONS: dict[str, dict[str, Any]] = {
    "of one code": {"only": "Horror", "penalty_form": []},
    "of several, with text": {"only": "Horror,Legal,Books", **DRAWN},
    "of texts": {"measured": 4, "new_tokens": 2},
    "after fine-tuning": {"steps": 3, "seeds": 2, "measured": 4, **DRAWN},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_figure_follows_from_what_was_measured(kind: str, tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    options = dict(OPTIONS[kind])
    if "only" not in options:
        for name, lines in (("Horror", ["a dog", "the sea", "blue"]), ("Legal", ["to wit", "a writ", "the sea", "x"])):
            (tmp_path / f"{name}.txt").write_text("\n".join(lines * (1 + bool(options.get("steps")))))
        options["texts"] = {name: str(tmp_path / f"{name}.txt") for name in ("Horror", "Legal")}
        options["only"] = "Legal,Books,Horror"
    run = probekit.run(
        str(tiny_gpt2()),
        plugins=["control-codes"],
        prompts=["The sky", "a girl"],
        options=options,
        output=tmp_path / "run",
    )
    assert run.failures == {}
    assert_figures_follow(tmp_path / "run", "control-codes")


def test_a_likelihood_that_is_not_the_saved_one_is_found(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    options = {"only": "Horror,Legal", "penalty_form": []}
    probekit.run(str(tiny_gpt2()), plugins=["control-codes"], prompts=["The"], options=options, output=tmp_path / "run")
    saved = RunDirectory.open(tmp_path / "run").result("control-codes")
    saved.tensors["nll_of_prompts/before"] = saved.tensors["nll_of_prompts/before"] + numpy.array([0, 1e-3, 0])
    found = recompute(ControlCodes(ControlCodesOptions(**options)), saved)  # type: ignore[arg-type]
    assert any("likelihood" in each for each in found.different)
    assert any("nll_lowest" in each or "margin" in each for each in found.different)
