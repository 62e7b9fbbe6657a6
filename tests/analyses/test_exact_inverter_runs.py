"""Whole runs of the exact inverter: the same bytes again, and after an interrupt; its page, with hostile tokens."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit.plugins import Plugins
from probekit.report import Document, render_html
from probekit.runs import resume
from probekit_plugins.exact_inverter import ExactInverter, ExactInverterOptions
from tests.analyses.recovering import OTHER, PROMPT, SITE, few_samples, gpt2, run
from tests.report.conftest import HOSTILE
from tests.runs.test_resume import OUTPUT, At, begin, contents

PROMPTS = [[4, 40, 41, 9], [7, 33, 12], [5, 6, 7, 8], [91]]
OPTIONS: dict[str, dict[str, Any]] = {
    "exact-inverter": {"sites": "every-block", "proposals": 4, "noise": 0.01},
    "leakage-audit": {"sites": "block.0,block.-1", "precisions": ["none", "int8"], "noise": [0.0, 1.0]},
}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr("probekit_plugins.exact_inverter.inversion.TOGETHER", 2)


def configured(model: Path, seed: int = 0) -> dict[str, Any]:
    return {
        "model": {"name": str(model)},
        "plugins": list(OPTIONS),
        "input_ids": PROMPTS,
        "options": OPTIONS,
        "seed": seed,
    }


# What draws the times that a run measured, and the hashes of that.
DRAWN = {"report.html", "summary.md", "page.json", "hashes.json"}


def assert_same(found: Path, expected: Path) -> None:
    """Every file but the pages, which show times."""
    one, other = (
        {name: data for name, data in contents(folder).items() if Path(name).name not in DRAWN}
        for folder in (found, expected)
    )
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
    assert any(name.endswith("result.json") for name in one)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2(n_layer=2)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few_samples(patch)
        patch.setattr("probekit_plugins.exact_inverter.inversion.TOGETHER", 2)
        assert begin(configured(model), save_every=1000.0).status == "done"
    return folder / OUTPUT


def test_both_analyses_run_from_end_to_end_with_a_report(whole: Path) -> None:
    report = (whole / "report.html").read_text(encoding="utf-8")
    for name, caption in (("exact-inverter", "What came back"), ("leakage-audit", "Every condition")):
        document = json.loads((whole / "analyses" / name / "result.json").read_text())
        assert document["finding"]
        assert document["metrics"]
        assert caption in report


def test_times_are_in_timings_and_nowhere_else(whole: Path) -> None:
    result = (whole / "analyses/exact-inverter/result.json").read_text()
    assert "seconds" not in result
    assert "/search" not in result
    found = probekit.read_run(whole).results["exact-inverter"]
    names = {
        f"{site}/{prompt}/{part}"
        for site in ("block.0", "block.1")
        for prompt in range(4)
        for part in ("search", "proof")
    }
    assert set(found.seconds) == names | {"block.0/learning", "block.1/learning"}
    assert all(seconds >= 0 for seconds in found.seconds.values())


def test_the_same_seed_writes_the_same_bytes(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begin(configured(model), save_every=1000.0)
    assert_same(OUTPUT, whole)


@pytest.mark.parametrize("moment", [1, 5, 14, 30, 60])
def test_an_interrupted_run_that_is_resumed_writes_the_same_bytes(
    model: Path, whole: Path, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = At(moment, lambda: signal.raise_signal(signal.SIGINT))
    try:
        begin(configured(model), listener, save_every=1000.0)
    except KeyboardInterrupt:
        assert resume(OUTPUT, Plugins()).status == "done"
    else:
        assert listener.seen < moment, "the interrupt was heard"
    assert_same(OUTPUT, whole)


def test_another_seed_draws_other_noise() -> None:
    subject = gpt2()
    first, again, other = (run(subject, PROMPT, seed=seed, sites=SITE, noise=0.2) for seed in (0, 0, 1))
    assert first.encode() == again.encode()
    assert first.encode() != other.encode()


# --- the page --------------------------------------------------------------------------------------------------------


def page_of(result: probekit.Result, **options: Any) -> probekit.Page:
    page = probekit.Page("exact-inverter")
    ExactInverter(ExactInverterOptions(**options), probekit.Context()).report(result, page)
    json.dumps(page.to_json(), allow_nan=False)
    return page


def test_a_page_of_hostile_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = gpt2(n_positions=32)
    ids = (PROMPT + OTHER)[: len(HOSTILE)]
    monkeypatch.setattr(
        subject, "tokens", lambda ids: [HOSTILE[int(token) % len(HOSTILE)] for token in torch.as_tensor(ids).flatten()]
    )
    result = run(subject, ids, [19, *ids[:4]], sites="every-block", positions=[0, 1, 3, 4])
    page = page_of(result, sites="every-block")
    html = render_html(Document("t", "q", pages=[("exact-inverter", page)]))
    assert "<script>window.ranHostile" not in html
    assert "<img src=x" not in html


@pytest.mark.parametrize("sites", [SITE, "every-block"])
def test_pages_of_one_prompt_and_of_many(sites: str) -> None:
    subject = gpt2()
    for prompts in ([[5]], [[5, 6, number] for number in range(20, 31)]):
        result = run(subject, *prompts, sites=sites)
        page = page_of(result, sites=sites)
        kinds = [block["type"] for block in page.blocks]
        assert kinds.count("tokens") == min(len(prompts), 8)
        notes = [block["text"] for block in page.blocks if block["type"] == "note"]
        assert notes == ([] if len(prompts) == 1 else [notes[0]])
        assert len(prompts) == 1 or "8 of 11 prompts" in notes[0]
        assert kinds.count("heatmap") == (0 if sites == SITE else min(len(prompts), 8))
        [every] = [block for block in page.blocks if block.get("caption", "").startswith("Every prompt")]
        assert len(every["rows"]) == len(result.tables["prompts"])


def test_a_page_without_times_and_without_a_single_recovered_token() -> None:
    """As read back from a folder whose times are gone, of a prompt of which nothing was known."""
    result = run(gpt2(), PROMPT, sites=SITE, positions=[-1], combinations=0)
    result.seconds.clear()
    page = page_of(result, sites=SITE)
    assert any("Where it failed" in block.get("caption", "") for block in page.blocks)
    [row] = [row for block in page.blocks if block["type"] == "tokens" for row in block["rows"] if row["label"] == SITE]
    assert "0 of 8 verified" in json.dumps(row)
