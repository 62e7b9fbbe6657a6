"""The head and the foot of a run's report: what was asked of which model, and every option that it had."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs import RunDirectory
from probekit.runs.render import render

PROMPTS = ["The sky", "is ⏐ blue"]


@pytest.fixture(scope="module")
def run(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> probekit.Run:
    return probekit.run(
        model=str(tiny_gpt2()),
        plugins=["activation-statistics"],
        prompts=PROMPTS,
        options={"sites": "block.-1"},
        output=tmp_path_factory.mktemp("runs") / "run",
    )


def facts(run: probekit.Run, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> dict[str, str]:
    """The facts of the summary, after a change of what the run says of itself."""
    manifest = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    change(manifest)
    render(RunDirectory(run.path), manifest)
    lines = (run.path / "summary.md").read_text(encoding="utf-8").splitlines()
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("- "))


def test_several_prompts_can_be_told_apart(run: probekit.Run) -> None:
    assert facts(run)["2 prompts"] == "“The sky”, “is ⏐ blue”"


def test_one_prompt_stands_as_it_is(run: probekit.Run) -> None:
    def one(manifest: dict[str, Any]) -> None:
        manifest["prompts"], manifest["prompt_count"] = manifest["prompts"][:1], 1

    assert facts(run, one)["Prompt"] == "The sky"


def test_of_many_prompts_the_first_are_shown_and_the_rest_counted(run: probekit.Run) -> None:
    def many(manifest: dict[str, Any]) -> None:
        manifest["prompts"], manifest["prompt_count"] = [{"text": f"p{number}"} for number in range(11)], 1204

    assert facts(run, many)["1,204 prompts"] == "“p0”, “p1”, “p2” and 1,201 more"


def test_the_sites_are_a_fact_by_analysis_where_they_differ(run: probekit.Run) -> None:
    assert facts(run)["Sites"] == "block.-1 (blocks are counted from 0)"

    def listed(manifest: dict[str, Any]) -> None:
        manifest["configuration"]["options"]["activation-statistics"]["sites"] = ["embedding", "norm"]

    assert facts(run, listed)["Sites"] == "embedding,norm"

    def two(sites: str | None) -> Callable[[dict[str, Any]], object]:
        return lambda manifest: manifest["configuration"]["options"].update(other={"sites": sites})

    assert facts(run, two("block.-1"))["Sites"] == "block.-1 (blocks are counted from 0)"
    assert facts(run, two("logits"))["Sites"] == (
        "activation-statistics: block.-1; other: logits (blocks are counted from 0)"
    )
    assert facts(run, two(None))["Sites"] == "block.-1 (blocks are counted from 0)"
    assert "Sites" not in facts(run, lambda manifest: manifest["configuration"].update(options={"other": {}}))


def test_the_embedded_model_is_named_as_what_it_is(run: probekit.Run) -> None:
    def embedded(manifest: dict[str, Any]) -> None:
        manifest["configuration"]["model"]["name"], manifest["model"]["source"] = "demo", "demo"

    assert facts(run, embedded)["Model"].startswith("demo, probekit's embedded model (GPT2LMHeadModel, trained, ")
    assert "embedded" not in facts(run)["Model"]


def test_provenance_names_every_option_as_it_is_given(run: probekit.Run) -> None:
    def given(manifest: dict[str, Any]) -> None:
        manifest["configuration"]["options"]["activation-statistics"] |= {"unset": None, "on": True}

    facts(run, given)
    shown = run.report_path.read_text(encoding="utf-8")
    pairs = dict(re.findall(r"<dt>(option: .*?)</dt><dd>(.*?)</dd>", shown))
    assert pairs["option: sites"] == "block.-1"
    assert (pairs["option: unset"], pairs["option: on"]) == ("unset", "true")
    facts(run, lambda manifest: manifest["configuration"]["options"].update(other={"a": 1}))
    shown = run.report_path.read_text(encoding="utf-8")
    assert "<dt>activation-statistics: sites</dt><dd>block.-1</dd>" in shown
    assert "<dt>other: a</dt><dd>1</dd>" in shown
