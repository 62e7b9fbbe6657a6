"""The wheel, installed away from the clone: every bundled plugin is listed and runs on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "entry-points"
]["probekit"]
# The analyses, and the smallest run of each.
SMALL: dict[str, list[str]] = {
    "activation-statistics": [],
    "autoencoder": ["-o", "steps=5", "-o", "pieces=12", "-o", "length=16", "-o", "widths=8", "-o", "seeds=1"],
    "clamped-walk": ["-o", "steps=2"],
    "exact-inverter": [],
    "frozen-head": ["-o", "steps=2", "-o", "pieces=10", "-o", "length=16", "-o", "initialisations=1"],
    "gradient-inverter": ["-o", "steps=5", "-o", "restarts=2"],
    "jacobian-spectrum": ["-o", "sites=block.0", "-o", "method=matrix-free", "-o", "iterations=3"],
    "layer-similarity": [],
    "leakage-audit": ["-o", "sites=block.0", "-o", "precisions=none", "-o", "noise=0,2"],
    "null-space-walk": ["-o", "steps=2", "-o", "iterations=3"],
    "orthogonal-walk": ["-o", "steps=2"],
    "pseudo-inverse": [],
    "repetition": ["-o", "new_tokens=4", "-o", "samples=2"],
}

# The environment of the tests may hold an editable installation, which puts the clone on the path: take it off again.
LAUNCHER = """\
import runpy, sys
from pathlib import Path

clone, installed = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = ["probekit", *sys.argv[3:]]
environment = Path(sys.prefix)
sys.path = [
    entry for entry in sys.path
    if not Path(entry).resolve().is_relative_to(clone) or Path(entry).resolve().is_relative_to(environment)
]

import probekit, probekit_plugins

for package in (probekit, probekit_plugins):
    assert Path(package.__file__).is_relative_to(installed), package.__file__
runpy.run_module("probekit", run_name="__main__", alter_sys=True)
"""


def pip(*arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        env=environment,
        check=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    [built] = folder.glob("probekit-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed").resolve()
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """Standard output of `probekit ARGUMENTS`, from the installed wheel alone."""
    launcher = cwd / "launch.py"
    launcher.write_text(LAUNCHER, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE_"))}
    finished = subprocess.run(
        [sys.executable, str(launcher), str(ROOT), str(installed), *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_holds_both_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"probekit", "probekit_plugins"}
    assert {"probekit/py.typed", "probekit_plugins/py.typed"} <= set(names)
    # Every file of the two packages is there: templates, styles, scripts and the embedded model as much as modules.
    for package in (ROOT / "probekit", ROOT / "plugins" / "probekit_plugins"):
        expected = {
            path.relative_to(package.parent).as_posix()
            for path in package.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert expected <= set(names)


def test_the_installed_wheel_lists_every_bundled_plugin(installed: Path, tmp_path: Path) -> None:
    listing = run_installed(installed, tmp_path, "plugins")
    assert all(name in listing for name in ENTRY_POINTS)
    assert set(ENTRY_POINTS) == {*SMALL, "reference-networks"}, "the one plugin without an analysis"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_installed_wheel_runs_every_bundled_analysis_on_the_embedded_model(
    installed: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "run"
    printed = run_installed(
        installed, tmp_path, "run", "--model", "demo", "--plugin", name, *SMALL[name],
        "--output", str(output), "--json",
    )  # fmt: skip
    document = json.loads(printed)
    assert document["analyses"][name]["status"] == "done"
    assert document["analyses"][name]["metrics"]
    assert Path(document["run"]).resolve() == output.resolve()
    assert Path(document["report"]).resolve().is_relative_to(output.resolve())
    assert "<html" in Path(document["report"]).read_text(encoding="utf-8")


def test_the_installed_wheel_runs_on_a_reference_network(installed: Path, tmp_path: Path) -> None:
    printed = run_installed(
        installed, tmp_path, "run", "--model", "fc-token,width=8", "--plugin", "orthogonal-walk", "-o", "steps=2",
        "--output", str(tmp_path / "run"), "--json",
    )  # fmt: skip
    assert json.loads(printed)["status"] == "done"
