"""Studies that judge each value of a variable by itself, leave out what is not asked for, and count what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from probekit.plugins import Plugins
from probekit.runs.studies import Study, study


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


# Two tiny networks, inverted for three steps: two restarts each.
RUN: dict[str, Any] = {
    "model": "$network",
    "plugins": "gradient-inverter",
    "options": {"sites": "block.1", "steps": 3, "restarts": 2, "next_token": False, "record_every": 1},
    "input_ids": [[5, 2, 7]],
    "sweep": {"network": "$networks"},
}
SMALL, LARGE = "fc-token,width=8,vocabulary=40", "fc-token,width=16,vocabulary=40"
LOSS = {"run": "networks", "table": "restarts", "column": "loss"}


def carried_out(plugins: Plugins, *expectations: dict[str, Any], networks: Any, **more: Any) -> Study:
    values = {
        "title": "Values",
        "parameters": {"networks": networks, "same": "$networks", "limit": 3},
        "runs": {"networks": RUN},
        "expectations": list(expectations),
    } | more
    Path("values.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return study("values.toml", "out", manager=plugins)


def expectation(**changes: Any) -> dict[str, Any]:
    return {
        "id": "lower",
        "claim": "The loss is a number",
        "figures": {"loss": LOSS},
        "verdicts": {"holds": "count(loss) > 0"},
        "because": "{count(loss)} restarts.",
    } | changes


def test_a_claim_is_judged_once_for_each_value(plugins: Plugins) -> None:
    outcome = carried_out(
        plugins,
        expectation(each="network", follows={"holds": "So it is, {count(loss)} times."}),
        expectation(id="all"),
        networks=[SMALL, LARGE],
    )
    small, large, both = outcome.judgements
    assert [small.label, large.label] == [f"lower (network {SMALL})", f"lower (network {LARGE})"]
    assert small.figures["loss"] + large.figures["loss"] == both.figures["loss"]
    assert len(small.figures["loss"]) == len(large.figures["loss"]) == 2
    assert small.figures != large.figures
    assert list(outcome.document()["expectations"]) == [small.label, large.label, "all"]
    report = outcome.report_path.read_text(encoding="utf-8")
    assert f"network {SMALL}" in report
    assert "So it is, 2 times." in report


def test_one_value_is_a_list_of_one_and_may_come_from_a_parameter_before_it(plugins: Plugins) -> None:
    outcome = carried_out(
        plugins, expectation(), networks=SMALL, runs={"networks": RUN | {"sweep": {"network": "$same"}}}
    )
    assert [cell.variables["network"] for cell in outcome.cells] == [SMALL]


def test_a_dollar_sign_within_a_parameter_is_one(plugins: Plugins) -> None:
    parameters = {"networks": SMALL, "price": "It costs $5.", "again": "${price}"}
    run = RUN | {"about": "prices", "sweep": {"network": "$networks", "text": "$again"}}
    outcome = carried_out(plugins, expectation(), networks=SMALL, runs={"networks": run}, parameters=parameters)
    assert [cell.variables["text"] for cell in outcome.cells] == ["It costs $5."]


def test_a_run_over_nothing_is_not_asked_for(plugins: Plugins) -> None:
    outcome = carried_out(
        plugins,
        expectation(each="network"),
        expectation(id="said", untested="It takes a network."),
        networks=[],
        charts=[{"caption": "Loss", "figure": LOSS, "x": "network", "each": "network"}],
    )
    assert outcome.cells == []
    assert [(judgement.verdict, judgement.met) for judgement in outcome.judgements] == [("not tested", None)] * 2
    assert outcome.judgements[0].because == "Nothing is asked for of the run networks."
    assert outcome.judgements[1].because == "It takes a network."
    assert outcome.passed


def test_what_is_missing_counts_as_the_figure_says(plugins: Plugins) -> None:
    steps = {"run": "networks", "table": "restarts", "column": "steps_to_exact"}
    outcome = carried_out(
        plugins,
        expectation(figures={"loss": steps}),
        expectation(id="counted", figures={"loss": steps | {"missing": 99}}),
        expectation(id="parameter", figures={"loss": steps | {"missing": "$limit"}}),
        expectation(id="value", figures={"loss": LOSS, "same": LOSS | {"missing": 99}}),
        networks=SMALL,
    )
    none, counted, parameter, value = outcome.judgements
    assert none.verdict == "incomplete"  # three steps do not get there
    assert counted.figures["loss"] == [99.0, 99.0]
    assert parameter.figures["loss"] == [3.0, 3.0]
    assert value.figures["same"] == value.figures["loss"]


def test_rows_match_any_of_a_list_and_parameters_reach_figures(plugins: Plugins) -> None:
    figures = {
        "loss": LOSS,
        "second": LOSS | {"rows": {"restart": [1, 7]}},
        "large": LOSS | {"where": {"network": "$which"}},
    }
    outcome = carried_out(
        plugins,
        expectation(figures=figures),
        networks=[SMALL, LARGE],
        parameters={"networks": [SMALL, LARGE], "which": LARGE},
    )
    [judgement] = outcome.judgements
    assert judgement.figures["second"] == judgement.figures["loss"][1::2]
    assert judgement.figures["large"] == judgement.figures["loss"][2:]


def test_charts_stand_beside_their_expectation_one_for_each_value(plugins: Plugins) -> None:
    chart = {"caption": "Loss", "figure": LOSS, "x": "seed", "each": "network", "beside": "second"}
    outcome = carried_out(plugins, expectation(), expectation(id="second"), networks=[SMALL, LARGE], charts=[chart])
    blocks = json.loads((outcome.path / "page.json").read_text(encoding="utf-8"))["pages"][0]["blocks"]
    texts = [json.dumps(block) for block in blocks]
    captions = [f"Loss, network {network}" for network in (SMALL, LARGE)]
    charts = [place for place, text in enumerate(texts) if any(caption in text for caption in captions)]
    second = next(place for place, text in enumerate(texts) if "second: The loss" in text)
    assert len(charts) == 2
    assert min(charts) > second


def test_the_report_alone_has_the_verdicts_and_no_link_to_a_cell(plugins: Plugins) -> None:
    outcome = carried_out(plugins, expectation(), networks=SMALL)
    whole = outcome.report_path.read_text(encoding="utf-8")
    alone = (outcome.path / "alone.html").read_text(encoding="utf-8")
    assert 'href="cells/' in whole
    assert "cells/" not in alone
    assert "2 restarts." in alone


def test_a_missing_cell_of_two_figures_is_one_missing_cell(plugins: Plugins) -> None:
    two = expectation(figures={"loss": LOSS, "same": LOSS})
    outcome = carried_out(plugins, two, networks=[SMALL, "fc-token,width=8,vocabulary=3"])  # it has no such tokens
    assert outcome.judgements[0].because == "Not judged: 1 of its cells are missing or failed."
