"""`probekit compare` and `probekit run --compare-random`: what they print, and what they leave behind."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ["-o", "steps=5", "-o", "restarts=3"]
# Imported by nothing that only draws: a model's libraries, and the analyses.
HEAVY = ("torch", "transformers", "accelerate", "bitsandbytes", "probekit_plugins", "safetensors.torch")

SAY_WHAT_WAS_IMPORTED = f"""
import sys
from probekit.cli import main
try:
    main()
finally:
    print('imported:', *sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)
"""

FAILING = """
import probekit

class Picky(probekit.Analysis[probekit.Options]):
    name = "picky"
    def run(self, subject, prompts):
        if subject.facts["source"] == "random weights":
            raise {error}
        return probekit.Result(metrics={{"one": 1}})
    def report(self, result, page):
        page.prose("fine")

@probekit.hookimpl
def probekit_analyses():
    return [Picky]
"""


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture
def runs(probekit_cli: Any, model: Path, tmp_path: Path) -> list[Path]:
    """Two runs of three restarts each that differ in their steps."""
    made = []
    for steps in (4, 6):
        made.append(tmp_path / f"run-{steps}")
        options = ["-o", f"steps={steps}", "-o", "restarts=3"]
        assert probekit_cli("run", "--model", model, *options, "--output", made[-1]).code == 0
    return made


def pages(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.html"))


# --- compare ---------------------------------------------------------------------------------------------------------


def test_two_runs_become_one_page_whose_place_is_printed_last(
    probekit_cli: Any, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = probekit_cli("compare", *runs)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "Comparison: comparison.html"
    assert ended.out.startswith("gradient-inverter, steps 4: Gradient descent recovers")
    html = Path("comparison.html").read_text(encoding="utf-8")
    assert "accuracy over steps: all 3 restarts (" in html
    assert ">gradient-inverter.steps<" in html, "named as `-o` takes it"
    assert probekit_cli("compare", *runs).out.splitlines()[-1] == "Comparison: comparison-2.html"


def test_json_is_one_document_with_the_figures_that_the_runs_saved(
    probekit_cli: Any, runs: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "page.html"
    ended = probekit_cli("compare", *runs, "--output", output, "--json")
    document = json.loads(ended.out)
    assert document["comparison"] == str(output)
    assert output.is_file()
    assert [(run["label"], run["run"]) for run in document["runs"]] == [
        ("steps 4", str(runs[0])),
        ("steps 6", str(runs[1])),
    ]
    assert document["differences"]["configuration"] == {"options.gradient-inverter.steps": {"steps 4": 4, "steps 6": 6}}
    saved = [
        json.loads((run / "analyses/gradient-inverter/result.json").read_text(encoding="utf-8"))["metrics"]
        for run in runs
    ]
    metrics = document["analyses"]["gradient-inverter"]["metrics"]
    assert set(metrics) == set(saved[0])
    for name, metric in metrics.items():
        assert metric["values"] == {"steps 4": saved[0][name], "steps 6": saved[1][name]}
        assert metric["differences"]["steps 6"]["absolute"] == saved[1][name] - saved[0][name]


def test_a_comparison_is_drawn_without_torch_without_the_model_and_without_the_plugin(
    probekit_process: Any, runs: list[Path], tmp_path: Path
) -> None:
    for number, run in enumerate(runs):
        (run / "analyses/gradient-inverter/tensors.safetensors").unlink()
        manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
        manifest["configuration"]["model"]["name"] = f"gone-{number}"
        (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    ended = probekit_process(
        "compare", *runs, "--output", tmp_path / "page.html", code=SAY_WHAT_WAS_IMPORTED,
        environment={"PROBEKIT_BLOCK_PLUGINS": "gradient-inverter"},
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.err.splitlines()[-1].strip() == "imported:"
    assert (tmp_path / "page.html").is_file()


def test_what_cannot_be_compared_ends_with_2_and_one_sentence(
    probekit_cli: Any, runs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    given: list[tuple[list[Path], str]] = [
        ([runs[0]], "two runs or more"),
        ([runs[0], tmp_path / "empty"], "is no run directory"),
        ([runs[0], runs[0]], "named twice"),
    ]
    for paths, said in given:
        ended = probekit_cli("compare", *paths, "--output", tmp_path / "page.html", "--json")
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.sentence
    assert pages(tmp_path) == []


# --- run --compare-random --------------------------------------------------------------------------------------------


def test_compare_random_leaves_both_runs_and_their_comparison_in_one_folder(
    probekit_cli: Any, model: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    ended = probekit_cli(
        "run", "--compare-random", "--model", model, "--weights-seed", "7", *SMALL, "--output", both, "--json"
    )
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert (document["status"], document["comparison"]) == ("done", str(both / "comparison.html"))
    assert sorted(path.name for path in both.iterdir()) == ["comparison.html", "random", "trained"]
    specs = {}
    for name, run in document["runs"].items():
        assert run["run"] == str(both / name)
        manifest = json.loads((both / name / "run.json").read_text(encoding="utf-8"))
        specs[name] = manifest["configuration"]["model"]
        assert (
            json.loads((both / name / "analyses/gradient-inverter/result.json").read_text(encoding="utf-8"))["metrics"]
            == run["analyses"]["gradient-inverter"]["metrics"]
        )
    assert (specs["trained"]["weights"], specs["random"]["weights"]) == ("pretrained", "random")
    assert specs["random"] == specs["trained"] | {"weights": "random"}
    assert specs["random"]["weights_seed"] == 7
    html = (both / "comparison.html").read_text(encoding="utf-8")
    assert "Comparison: trained weights and random weights" in html


def test_each_run_of_the_pair_is_the_run_that_its_own_command_makes(
    probekit_cli: Any, model: Path, tmp_path: Path
) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert probekit_cli("run", "--compare-random", "--model", model, *SMALL, "--output", both).code == 0
    command = json.loads((both / "random/run.json").read_text(encoding="utf-8"))["command"]
    assert "--weights random" in command
    assert probekit_cli(*shlex.split(command)[1:], "--output", alone).code == 0
    for file in ("result.json", "tensors.safetensors", "page.json"):
        path = Path("analyses/gradient-inverter") / file
        assert (both / "random" / path).read_bytes() == (alone / path).read_bytes()


def test_without_an_output_the_pair_gets_a_new_folder_beside_the_runs(
    probekit_cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = probekit_cli("run", "--compare-random", "--model", model, *SMALL)
    [folder] = Path("probekit-runs").iterdir()
    assert ended.out.splitlines()[-1] == f"Comparison: {folder / 'comparison.html'}"
    assert [line for line in ended.out.splitlines() if line.startswith("With")] == [
        "With trained weights:",
        "With random weights:",
    ]


def test_compare_random_contradicts_random_weights_wherever_they_were_asked_for(
    probekit_cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "settings.toml"
    config.write_text('[model]\nweights = "random"\n')
    for words in (["--weights", "random"], ["--config", config], ["--config", config, "--dry-run"]):
        ended = probekit_cli("run", "--compare-random", "--model", model, *words)
        assert ended.code == 2
        assert "random weights are asked for already" in ended.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


def test_an_output_that_is_in_use_is_left_as_it_is(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("keep")
    ended = probekit_cli("run", "--compare-random", "--model", model, *SMALL, "--output", tmp_path / "used")
    assert ended.code == 2
    assert "is not empty" in ended.sentence
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["mine"]


def test_a_model_that_does_not_load_leaves_no_folder(probekit_cli: Any, tmp_path: Path) -> None:
    ended = probekit_cli("run", "--compare-random", "--model", tmp_path / "none", "--output", tmp_path / "both")
    assert ended.code == 4
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_that_fails_in_one_run_ends_with_1_and_the_rest_is_compared(
    probekit_cli: Any, model: Path, tmp_path: Path, install_plugin: Any
) -> None:
    install_plugin("picky", FAILING.format(error='probekit.AnalysisError("Not on random weights.")'))
    arguments = ["run", "--compare-random", "--model", model, "--plugin", "picky"]
    ended = probekit_cli(*arguments, "--plugin", "pseudo-inverse", "--output", tmp_path / "both", "--json")
    assert ended.code == 1
    document = json.loads(ended.out)
    assert (document["status"], document["comparison"]) == ("failed", str(tmp_path / "both/comparison.html"))
    assert ended.sentence == "picky with random weights: Not on random weights."
    assert "Not on random weights." in (tmp_path / "both/comparison.html").read_text(encoding="utf-8")

    ended = probekit_cli(*arguments, "--output", tmp_path / "alone", "--json")
    assert (ended.code, json.loads(ended.out)["comparison"]) == (1, None)
    assert pages(tmp_path / "alone") == []


def test_an_interrupted_pair_ends_with_130_and_says_what_completes_it(
    probekit_cli: Any, model: Path, tmp_path: Path, install_plugin: Any
) -> None:
    install_plugin("picky", FAILING.format(error="KeyboardInterrupt"))
    both = tmp_path / "both"
    ended = probekit_cli("run", "--compare-random", "--model", model, "--plugin", "picky", "--output", both)
    assert ended.code == 130
    assert (
        f"After that: probekit compare {both / 'trained'} {both / 'random'} --output {both / 'comparison.html'}"
        in ended.err
    )
    assert json.loads((both / "trained/run.json").read_text(encoding="utf-8"))["status"] == "done"
    assert json.loads((both / "random/run.json").read_text(encoding="utf-8"))["status"] != "done"
    assert pages(both) == []
