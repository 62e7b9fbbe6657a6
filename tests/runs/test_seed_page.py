"""The study of the source page's claims: every claim has its row, and every run and rule of it works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from probekit.plugins import Plugins
from probekit.runs.studies import study
from probekit.runs.studies.cells import expand
from probekit.runs.studies.file import StudyFile, read_study
from probekit.runs.studies.judge import check_study

FILE = Path(__file__).parents[2] / "reports" / "studies" / "seed-page.toml"


@pytest.fixture(scope="module")
def file() -> StudyFile:
    return read_study(FILE, {})


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


def test_every_claim_has_a_row_with_its_source_its_test_and_its_rules(file: StudyFile) -> None:
    rows = {row.id: row for row in file.expectations}
    assert [f"C{number}" for number in range(1, 36) if f"C{number}" not in rows] == []
    for row in rows.values():
        assert row.test, row.id
        assert row.verdicts, row.id
        assert row.because, row.id
        assert row.source or re.search("dropout|trained", row.id), row.id
    # What the page did after a fresh construction, dropout left on, is tested once beside.
    assert {f"C{number} with dropout" for number in (7, 8, 9, 10)} <= set(rows)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"model": "gpt2", "large": "gpt2-xl", "text": "text.txt", "middle": 5},
        {"model": ["demo", "gpt2"], "architecture": "gpt2"},
    ],
)
def test_every_run_can_be_configured_and_every_figure_found(parameters: dict[str, Any], plugins: Plugins) -> None:
    asked = read_study(FILE, parameters)
    cells = expand(asked, plugins)
    check_study(asked, cells)
    named = {cell.resolved.config.model.name for cell in cells}
    models = parameters.get("model", "demo")
    assert set(models if isinstance(models, list) else [models]) <= named
    assert ("gpt2-xl" in named) == ("large" in parameters)


def test_no_verdict_is_expected_since_a_refutation_is_a_result(file: StudyFile) -> None:
    assert [row.id for row in file.expectations if row.expect] == []


def test_no_trained_claim_of_small_models_is_called_that_of_another(file: StudyFile) -> None:
    """Rows on trained models name the model that they are of, so that a figure is never taken for GPT-2's."""
    of_trained = [
        row.id
        for row in file.expectations
        if row.each is None and any("trained" in file.runs[figure.run].sweep for figure in row.figures.values())
    ]
    assert of_trained == []


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path: Path, plugins: Plugins) -> None:
    """Every run with few steps, one or two seeds and few walkers: no cell fails, and every row comes to a verdict."""
    values = tomllib.loads(FILE.read_text(encoding="utf-8"))

    def smaller(options: dict[str, Any]) -> dict[str, Any]:
        most = {"steps": 6, "restarts": 2, "walkers": 2, "record_every": 2, "initialisations": 2, "new_tokens": 12}
        return {
            name: smaller(value)
            if isinstance(value, dict)
            else min(value, most[name])
            if name in most and isinstance(value, int)
            else value
            for name, value in options.items()
        }

    for run in values["runs"].values():
        run["options"] = smaller(run["options"])
        run["seeds"] = min(run.get("seeds", 1), 2)
        if "steps" in run["sweep"]:
            run["options"]["record_every"] = 100
    values["parameters"]["openings"] = values["parameters"]["openings"][:2]
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("This is a prompt sentence. The sky is blue. " * 40, encoding="utf-8")
    parameters = {"large": "demo", "text": str(text)}
    outcome = study(path, tmp_path / "out", parameters=parameters, manager=plugins)
    assert outcome.failures == {}
    faulty = {
        judgement.label: judgement.because
        for judgement in outcome.judgements
        if judgement.verdict in ("at fault", "not tested")
    }
    assert faulty == {}
    # What few steps leave without a value: no decoding is poor, or none is wrong.
    incomplete = {judgement.expectation.id for judgement in outcome.judgements if judgement.verdict == "incomplete"}
    assert incomplete <= {"C8", "C27", "C27 untrained", "C30"}
