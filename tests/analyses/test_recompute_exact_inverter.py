"""Every figure of a recovery, and of an audit, comes out again from how far each token was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import probekit
from probekit.runs.recompute import recompute
from probekit_plugins.exact_inverter import ExactInverter, ExactInverterOptions
from tests.analyses.recomputing import assert_figures_follow
from tests.analyses.recovering import few_samples

PROMPTS = ["The sky is blue.", "Once upon"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2(initializer_range=0.3)


def run(model: Path, output: Path, plugin: str = "exact-inverter", **options: Any) -> probekit.Result:
    return probekit.run(model=str(model), plugins=[plugin], prompts=PROMPTS, options=options, output=output).result


def statuses(result: probekit.Result) -> set[Any]:
    return {row["status"] for row in result.tables["positions"]}


def test_every_figure_follows_from_how_far_each_token_was(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "run", sites="block.0,block.1", rivals="all")
    assert statuses(result) == {"verified"}
    assert_figures_follow(tmp_path / "run", "exact-inverter")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"noise": 0.1, "rounding": "int8"}, {"verified", "tied", "matching"}),
        ({"tolerance": 0.5, "rivals": 0}, {"matching", "tied"}),
        ({"positions": [0, 1, 3], "combinations": 0}, {"verified", "undetermined"}),
    ],
    ids=["noise", "no rivals", "unknown"],
)
def test_what_a_token_is_follows_too(model: Path, tmp_path: Path, options: dict[str, Any], told: set[str]) -> None:
    result = run(model, tmp_path / "run", sites="block.1", **options)
    assert told <= statuses(result)
    assert_figures_follow(tmp_path / "run", "exact-inverter")


def test_a_file_has_no_right_tokens_and_its_figures_follow(model: Path, tmp_path: Path) -> None:
    subject = probekit.load(str(model))
    activations = subject.capture(subject.encode(PROMPTS[0]), ["block.1"])["block.1"]
    save_file({"activations": activations}, tmp_path / "leaked.safetensors")
    result = run(model, tmp_path / "run", sites="block.1", activations=str(tmp_path / "leaked.safetensors"))
    assert result.tables["prompts"][0]["exact"] is None
    assert_figures_follow(tmp_path / "run", "exact-inverter")


def test_a_distance_that_was_changed_no_longer_proves_what_the_tables_say(model: Path, tmp_path: Path) -> None:
    options = {"sites": "block.1"}
    result = run(model, tmp_path / "run", **options)
    result.tensors["block.1/distance"][1] = 1.0
    told = " ".join(recompute(ExactInverter(ExactInverterOptions(**options)), result).different)
    for figure in ("row 1, column 'status'", "'block.1/verified_share'"):
        assert figure in told
    assert "row 2, column 'status'" in told, "what comes after it is not certain either"


def test_every_figure_of_an_audit_follows(model: Path, tmp_path: Path) -> None:
    options = {"sites": "block.0,block.1", "precisions": "none,int8", "noise": [0.0, 0.0]}
    result = run(model, tmp_path / "run", "leakage-audit", **options)
    assert len(result.tables["conditions"]) == 4, "a condition that is named twice is tried once"
    assert_figures_follow(tmp_path / "run", "leakage-audit")
