"""The leakage audit: every condition is what the exact inverter gives under it, in a table and a chart."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.exact_inverter.figures import figures
from probekit_plugins.leakage_audit import LeakageAudit, LeakageAuditOptions
from tests.analyses.recovering import OTHER, PROMPT, few_samples, gpt2, prompt_of, run
from tests.forward.tiny import named

NOISE = [0.0, 0.5, 4.0]


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def audited(subject: probekit.Subject, *prompts: list[int], seed: int = 0, **options: Any) -> probekit.Result:
    analysis = LeakageAudit(LeakageAuditOptions(**options), probekit.Context(seed))
    result = analysis.run(subject, [prompt_of(subject, ids) for ids in prompts or (PROMPT,)])
    result.encode()
    return result


def blocks_of(result: probekit.Result, **options: Any) -> list[dict[str, Any]]:
    page = probekit.Page("leakage-audit")
    LeakageAudit(LeakageAuditOptions(**options), probekit.Context()).report(result, page)
    json.dumps(page.to_json(), allow_nan=False)
    return page.blocks


def chart_of(result: probekit.Result, **options: Any) -> dict[str, Any]:
    [chart] = [block for block in blocks_of(result, **options) if block["type"] == "lines"]
    return chart


def test_every_combination_is_a_row_and_a_figure(subject: probekit.Subject) -> None:
    result = audited(subject, PROMPT, OTHER[:4], sites="every-block", precisions=["none", "bf16", "int8"], noise=NOISE)
    rows = result.tables["conditions"]
    wanted = [(s, p, n) for s in ("block.0", "block.1") for p in ("none", "bf16", "int8") for n in NOISE]
    assert [(row["site"], row["precision"], row["noise"]) for row in rows] == wanted
    assert len(result.metrics) == 4 * len(wanted)
    accuracies = {name: value for name, value in result.metrics.items() if name.endswith("/token_accuracy")}
    assert list(accuracies.values()) == [row["token_accuracy"] for row in rows]
    assert all(row["false_positives"] == 0 for row in rows)
    recovered = result.sequences["recovered"]
    assert len(recovered) == 2 * len(wanted)
    labels = {(s.labels["site"], s.labels["precision"], s.labels["noise"], s.labels["prompt"]) for s in recovered}
    assert len(labels) == len(recovered)
    assert len(result.seconds) == len(wanted) + 2


def test_a_condition_is_what_the_exact_inverter_gives_under_it(subject: probekit.Subject) -> None:
    """With the same seed, and so the same noise: all figures."""
    result = audited(subject, PROMPT, OTHER, sites="block.1", precisions=["int8"], noise=[0.2])
    alone = run(subject, PROMPT, OTHER, sites="block.1", rounding="int8", noise=0.2)
    assert [s.ids for s in result.sequences["recovered"]] == [s.ids for s in alone.sequences["recovered"]]
    [row] = result.tables["conditions"]
    of_alone = figures(alone.tables["prompts"], alone.tables["positions"])
    assert {name: row[name] for name in of_alone} == of_alone


def test_less_comes_back_under_more_noise(subject: probekit.Subject) -> None:
    result = audited(subject, sites="block.1", precisions="none", noise=[0.0, 1.0, 30.0])
    shares = [float(row["token_accuracy"] or 0) for row in result.tables["conditions"]]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < 0.5
    assert "100% of the tokens come back from block.1" in result.finding
    assert "noise of σ = 30" in result.finding


def test_the_same_noise_at_every_precision_and_size(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    from probekit_plugins.leakage_audit import audit

    blurred, made = audit.blurred, []

    def note(target: Any, *arguments: Any) -> Any:
        made.append((arguments[:2], target, blurred(target, *arguments)))
        return made[-1][2]

    monkeypatch.setattr(audit, "blurred", note)
    audited(subject, sites="block.1", precisions=["none", "fp16"], noise=[1.0, 2.0])
    moved = {key: (after.activations - before.activations) for key, before, after in made}
    torch.testing.assert_close(moved["none", 2.0], 2 * moved["none", 1.0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved["fp16", 1.0], moved["none", 1.0], rtol=0.01, atol=0.01)


def test_the_chart_has_a_line_for_each_site_and_precision_over_noise(subject: probekit.Subject) -> None:
    options: dict[str, Any] = {"sites": "every-block", "precisions": ["none", "int8"], "noise": [1.0, 0.0]}
    result = audited(subject, **options)
    series = chart_of(result, **options)["series"]
    assert [line["name"] for line in series] == [
        "block.0, as it is",
        "block.0, int8",
        "block.1, as it is",
        "block.1, int8",
    ]
    for line in series:
        assert [x for x, _ in line["points"]] == [0.0, 1.0]
        assert line["points"][0][1] == 1.0


def test_one_size_of_noise_is_drawn_over_sites(subject: probekit.Subject) -> None:
    options: dict[str, Any] = {"sites": "embedding,every-block", "precisions": ["none"], "noise": 0}
    chart = chart_of(audited(subject, **options), **options)
    assert [(line["name"], line["points"]) for line in chart["series"]] == [
        ("as it is", [["embedding", 1.0], ["block.0", 1.0], ["block.1", 1.0]])
    ]
    assert chart["x"] == "site"


def test_of_many_sites_eight_lines_are_drawn_and_all_are_in_the_table() -> None:
    options: dict[str, Any] = {"precisions": ["none"], "noise": [0.0, 1.0]}
    figures = ("token_accuracy", "exact_rate", "verified_share", "false_positives", "candidates_per_token")
    rows: list[dict[str, Any]] = [
        {"site": f"block.{number}", "precision": "none", "noise": noise, **dict.fromkeys(figures, 0.5)}
        for number in range(9)
        for noise in (0.0, 1.0)
    ]
    result = probekit.Result(tables={"conditions": rows})
    blocks = blocks_of(result, **options)
    [chart] = [block for block in blocks if block["type"] == "lines"]
    names = [line["name"] for line in chart["series"]]
    assert len(names) == len(set(names)) == 8
    assert (names[0], names[-1]) == ("block.0", "block.8")
    [table] = [block for block in blocks if block["type"] == "table"]
    assert len(table["rows"]) == 18


def test_conditions_that_are_nearly_alike_keep_their_own_figures(subject: probekit.Subject) -> None:
    """`0.1234567` and `0.12345678` are two conditions: two figures and two times, and not one of them."""
    result = audited(subject, PROMPT[:3], sites="block.1", precisions=["none"], noise=[0.12345671, 0.12345678])
    assert len(result.tables["conditions"]) == 2
    assert len(result.metrics) == 8
    assert len(result.seconds) == 3


@pytest.mark.parametrize(
    "options", [{"noise": [-1]}, {"noise": []}, {"precisions": []}, {"precisions": "int4"}], ids=str
)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LeakageAuditOptions(**options)


def test_several_values_may_be_given_with_commas() -> None:
    options = LeakageAuditOptions(precisions="none,int8", noise="0, 0.5")  # type: ignore[arg-type]
    assert (options.precisions, options.noise) == (["none", "int8"], [0.0, 0.5])


def test_a_single_value_may_be_given_without_a_list() -> None:
    options = LeakageAuditOptions(noise=0.5, precisions="bf16")  # type: ignore[arg-type]
    assert (options.noise, options.precisions) == ([0.5], ["bf16"])


def test_a_model_that_is_not_causal_is_refused() -> None:
    subject = probekit.Subject(named("cpmant"))
    with pytest.raises(probekit.AnalysisError, match="depends on tokens that come later"):
        audited(subject, PROMPT, sites="block.0")
