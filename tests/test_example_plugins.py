"""The third-party plugins under plugins/examples: built and installed with pip, away from their source, and used."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit import hookspecs

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {path.parent.name: path.parent for path in sorted((ROOT / "plugins" / "examples").glob("*/pyproject.toml"))}


def run(*words: object, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A Python of its own, without what pytest, its coverage or pip's constraints left in the environment."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV_", "COVERAGE_", "PYTEST_")) and name != "PIP_CONSTRAINT"
    }
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=inherited | {"PYTHONDONTWRITEBYTECODE": "1"} | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def project(example: str) -> dict[str, Any]:
    """What the pyproject.toml of an example says of it."""
    with (EXAMPLES[example] / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the examples are installed, beside this probekit; their journal is not the user's."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    pip = run("-m", "pip", "install", "--quiet", *offline, "--target", folder, *EXAMPLES.values(), cwd=folder)
    assert pip.returncode == 0, pip.stderr
    for example in EXAMPLES:
        package = folder / example.replace("-", "_")
        assert (package / "__init__.py").is_file()
        assert (package / "py.typed").is_file()
    journal = tmp_path_factory.mktemp("state") / "journal.jsonl"
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "PROBEKIT_JOURNAL": str(journal)}


@pytest.fixture(scope="module")
def listed(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `probekit plugins` says of each entry point."""
    listing = run(
        "-m", "probekit", "plugins", "list", "--json", cwd=tmp_path_factory.mktemp("listed"), environment=installed
    )
    assert listing.returncode == 0, listing.stderr
    return {entry["plugin"]: entry for entry in json.loads(listing.stdout)}


# --- each of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_listed(example: str, listed: dict[str, Any]) -> None:
    said = project(example)
    for point in said["entry-points"]["probekit"]:
        entry = listed[point]
        assert (entry["status"], entry["error"]) == ("loaded", "")
        assert (entry["distribution"], entry["version"]) == (said["name"], said["version"])
        assert entry["hooks"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_own_tests_of_an_example_pass(example: str, installed: dict[str, str], tmp_path: Path) -> None:
    tests = EXAMPLES[example] / "tests"
    finished = run(
        "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=tmp_path, environment=installed
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout
    assert "failed" not in finished.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_importing_an_example_imports_no_torch(example: str, installed: dict[str, str], tmp_path: Path) -> None:
    modules = ", ".join(project(example)["entry-points"]["probekit"].values())
    code = f"import sys, {modules}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    finished = run("-c", code, cwd=tmp_path, environment=installed)
    assert (finished.returncode, finished.stdout.strip()) == (0, ""), finished.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_uses_what_probekit_exports_and_nothing_else(example: str) -> None:
    files = sorted(EXAMPLES[example].rglob("*.py"))
    assert files
    found = {
        str(path.relative_to(EXAMPLES[example])): [*private_uses(path.read_text(encoding="utf-8"))] for path in files
    }
    assert {name: uses for name, uses in found.items() if uses} == {}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_says_what_it_answers_and_how_it_is_installed_and_tested(example: str) -> None:
    text = (EXAMPLES[example] / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {example}\n")
    for heading in ("Install", "Use", "How it works", "Limits", "Tests"):
        assert f"\n## {heading}\n" in text
    assert f"pip install ./plugins/examples/{example}\n" in text
    assert f"pytest plugins/examples/{example}/tests\n" in text


def private_uses(source: str) -> Iterator[str]:
    """What a source takes from probekit that is not public: by import, or as an attribute of the imported package."""
    public = {*probekit.__all__, "testing"}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            # Another name for the package would hide what is taken from it.
            yield from (f"{alias.name} as {alias.asname}" for alias in node.names if alias.asname and ours(alias.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "probekit":
            names = [f"probekit.{node.attr}"]
        for name in filter(ours, names):
            package, _, rest = name.partition(".")
            if package != "probekit" or (rest and rest.partition(".")[0] not in public):
                yield name


def ours(name: str) -> bool:
    """Whether a module or what is in it belongs to this distribution."""
    return name.partition(".")[0] in ("probekit", "probekit_plugins")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import probekit\nprobekit.Analysis\nfrom probekit import Result, load", []),
        ("from probekit.testing.fixtures import tiny_subject\nimport probekit.testing", []),
        ("from probekit_encoders.loading import load_encoder\nfrom .loading import x\nother.runs", []),
        ("from probekit.runs import read_run", ["probekit.runs.read_run"]),
        ("def f():\n    import probekit.forward", ["probekit.forward"]),
        ("import probekit\nprobekit.errors.nearest", ["probekit.errors"]),
        ("from probekit import errors, Subject", ["probekit.errors"]),
        ("from probekit import *", ["probekit.*"]),
        ("import probekit as p", ["probekit as p"]),
        ("from probekit_plugins.head import predicted_tokens", ["probekit_plugins.head.predicted_tokens"]),
        ("import probekit_plugins", ["probekit_plugins"]),
    ],
)
def test_what_is_not_public_is_seen_however_it_is_taken(source: str, found: list[str]) -> None:
    assert [*private_uses(source)] == found


# --- all of them -----------------------------------------------------------------------------------------------------


def test_every_hook_has_an_example(listed: dict[str, Any]) -> None:
    points = [point for example in EXAMPLES for point in project(example)["entry-points"]["probekit"]]
    implemented = {hook for point in points for hook in listed[point]["hooks"]}
    hooks = {name for name in vars(hookspecs) if name.startswith("probekit_")}
    assert implemented == hooks, "a hook needs a real implementation under plugins/examples"
    table = (ROOT / "plugins" / "examples" / "README.md").read_text(encoding="utf-8")
    for example in EXAMPLES:
        for point in project(example)["entry-points"]["probekit"]:
            for hook in listed[point]["hooks"]:
                assert f"| `{hook}` | [{example}]({example}) |" in table


# --- probekit-encoders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a T5 with random weights, encoder and decoder."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=3, num_heads=4)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_layer_of_an_encoder_is_inverted(
    installed: dict[str, str], t5: Path, tmp_path: Path, probekit_cli: Callable[..., Any]
) -> None:
    given = ("--plugin", "gradient-inverter", "-o", "steps=150", "-o", "restarts=2", "--input-ids", "25,30,31,27,12")
    finished = run(
        "-m", "probekit", "run", "--model", f"encoder:{t5}", *given, "--output", "run", "--json",
        cwd=tmp_path, environment=installed,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert document["analyses"]["gradient-inverter"]["metrics"]["block.0/token_accuracy_mean"] > 0.9
    assert "T5EncoderModel" in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    assert "<html" in (tmp_path / document["report"]).read_text(encoding="utf-8")

    without = probekit_cli("run", "--model", t5, *given, "--output", tmp_path / "without")
    assert (without.code, "T5" in without.sentence) == (4, True), "which is why there is a plugin"


# --- probekit-logit-lens and probekit-journal ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of three runs of the lens, one done, one failed, one without a model; and their environment."""
    folder = tmp_path_factory.mktemp("runs")
    environment = installed | {"PROBEKIT_JOURNAL": str(folder / "journal.jsonl")}
    prompts = ["--prompt", "Once upon a time, there was a little girl.", "--prompt", "The sky is blue."]
    words = {
        "done": ["--model", "demo", *prompts],
        "failed": ["--model", "demo", "-o", "sites=logits"],
        "never": ["--model", "no-model"],
    }
    code = (  # in one process: importing torch takes longer than the runs
        "import runpy, sys\n"
        f"for name, words in {words}.items():\n"
        "    sys.argv = ['probekit', 'run', '--plugin', 'logit-lens', *words, '--output', name]\n"
        "    try: runpy.run_module('probekit', run_name='__main__')\n"
        "    except SystemExit as end: print(name, 'ends with', end.code)\n"
    )
    finished = run("-c", code, cwd=folder, environment=environment)
    for ending in ("done ends with 0", "failed ends with 1", "never ends with 4"):
        assert ending in finished.stdout.splitlines(), finished.stderr
    assert "journal" not in finished.stderr
    return folder, environment


def test_the_lens_is_the_model_at_the_last_block_of_the_embedded_model(runs: tuple[Path, dict[str, str]]) -> None:
    result = probekit.read_run(runs[0] / "done").result
    rows: dict[Any, Any] = {row["site"]: row for row in result.tables["sites"]}
    assert [*rows] == [*(f"block.{index}" for index in range(6)), "the model"]
    assert rows["block.5"]["agreement"] == 1.0
    assert result.metrics["last_block_difference"] == pytest.approx(0, abs=1e-3)
    assert rows["block.0"]["kl_median"] > rows["block.4"]["kl_median"] > rows["block.5"]["kl_median"]
    report = (runs[0] / "done" / "report.html").read_text(encoding="utf-8")
    assert "The most probable next token by site" in report
    assert probekit.read_run(runs[0] / "done").result.finding.replace("'", "&#39;") in report


def test_the_journal_lists_runs_that_are_done_or_failed_or_had_no_model(
    runs: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, environment = runs
    listing = run("-m", "probekit", "journal", "--json", cwd=tmp_path, environment=environment)
    assert listing.returncode == 0, listing.stderr
    document = json.loads(listing.stdout)
    done, failed, never = document["runs"]
    assert document["damaged_lines"] == 0
    assert [Path(entry["directory"]) for entry in (done, failed, never)] == [
        folder / name for name in ("done", "failed", "never")
    ]
    assert [entry["status"] for entry in (done, failed, never)] == ["done", "failed", "abandoned"]
    assert done["findings"] == {"logit-lens": probekit.read_run(folder / "done").result.finding}
    assert failed["failures"] == probekit.read_run(folder / "failed").failures
    assert never["failures"]["run"].startswith("'no-model' is no folder here")
    assert not (folder / "never").exists()

    shown = run("-m", "probekit", "journal", "--status", "failed", cwd=tmp_path, environment=environment)
    assert shown.stdout.splitlines()[2].startswith("    logit-lens failed: The head reads activations of width")
    missing = run("-m", "probekit", "journal", cwd=tmp_path, environment=environment | {"PROBEKIT_JOURNAL": "no.jsonl"})
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("Error: There is no journal 'no.jsonl'")
