"""The third-party plugin under plugins/examples: built and installed with pip, away from its source, and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ROOT / "plugins" / "examples" / "probekit-encoders"


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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the example is installed, beside this probekit."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    pip = run("-m", "pip", "install", "--quiet", *offline, "--target", folder, ENCODERS, cwd=folder)
    assert pip.returncode == 0, pip.stderr
    assert (folder / "probekit_encoders" / "__init__.py").is_file()
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


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


def test_the_example_is_listed(installed: dict[str, str], tmp_path: Path) -> None:
    listing = run("-m", "probekit", "plugins", cwd=tmp_path, environment=installed)
    assert listing.returncode == 0, listing.stderr
    assert "encoders  [probekit-encoders 0.1.0]\n" in listing.stdout
    assert "the hooks probekit_anatomy, probekit_load_model" in listing.stdout


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


def test_the_example_s_own_tests_pass(installed: dict[str, str], tmp_path: Path) -> None:
    tests = run("-m", "pytest", "-q", "-p", "no:cacheprovider", ENCODERS / "tests", cwd=tmp_path, environment=installed)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert " passed" in tests.stdout
    assert "failed" not in tests.stdout
