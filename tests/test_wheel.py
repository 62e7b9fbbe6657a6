"""The wheel, installed away from the clone: every bundled plugin is listed and runs on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

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
    "control-codes": ["-o", "only=Horror,Reviews", "-o", "new_tokens=4"],
    "exact-inverter": [],
    "frozen-head": ["-o", "steps=2", "-o", "pieces=10", "-o", "length=16", "-o", "initialisations=1"],
    "gradient-inverter": ["-o", "steps=5", "-o", "restarts=2"],
    "jacobian-spectrum": ["-o", "sites=block.0", "-o", "method=matrix-free", "-o", "iterations=3"],
    "layer-similarity": [],
    "leakage-audit": ["-o", "sites=block.0", "-o", "precisions=none", "-o", "noise=0,2"],
    "null-space-walk": ["-o", "steps=2", "-o", "iterations=3"],
    "one-word-autoencoder": ["-o", "steps=2", "-o", "pieces=20", "-o", "length=4", "-o", "seeds=1"],
    "orthogonal-walk": ["-o", "steps=2"],
    "pseudo-inverse": [],
    "repetition": ["-o", "new_tokens=4", "-o", "samples=2"],
    "text-vae": ["-o", "steps=2", "-o", "pieces=20", "-o", "length=4", "-o", "importance_samples=1"],
}

# The environment of the tests may hold an editable installation, which puts the clone on the path: take it off again.
# Each command is run in a forked child, as if it were the only one, and importing torch and transformers, which takes
# longer than most of the commands, is shared by all of them.
LAUNCHER = """\
import json, os, runpy, sys
from pathlib import Path

clone, installed = Path(sys.argv[1]), Path(sys.argv[2])
commands = json.loads(sys.argv[3])
environment = Path(sys.prefix)
sys.path = [
    entry for entry in sys.path
    if not Path(entry).resolve().is_relative_to(clone) or Path(entry).resolve().is_relative_to(environment)
]
if len(commands) > 1:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

    assert not [name for name in sys.modules if name.partition(".")[0] in ("probekit", "probekit_plugins")]


def run(name, words):
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    sys.argv = ["probekit", *words]
    import probekit, probekit_plugins

    for package in (probekit, probekit_plugins):
        assert Path(package.__file__).is_relative_to(installed), package.__file__
    runpy.run_module("probekit", run_name="__main__", alter_sys=True)


codes = {}
for name, words in commands.items():
    child = os.fork()
    if not child:
        run(name, words)
        sys.exit()
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


class Ended(NamedTuple):
    """A command that came to its end, and the folder that a run of that name is told to write."""

    code: int
    out: str
    err: str
    folder: Path


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


def run_installed(installed: Path, cwd: Path, commands: dict[str, list[str]]) -> dict[str, Ended]:
    """What came of each `probekit …`, from the installed wheel alone."""
    launcher = cwd / "launch.py"
    launcher.write_text(LAUNCHER, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE_"))}
    finished = subprocess.run(
        [sys.executable, str(launcher), str(ROOT), str(installed), json.dumps(commands)],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = {}
    for name, code in json.loads(finished.stdout).items():
        out, err = ((cwd / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("out", "err"))
        found[name] = Ended(code, out, err, cwd / name)
    return found


@pytest.fixture(scope="module")
def ran(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What came of the smallest run of each analysis, and of one on a reference network, in folders of their names."""
    folder = tmp_path_factory.mktemp("ran")
    return run_installed(
        installed,
        folder,
        {
            name: [
                *("run", "--model", "demo", "--plugin", name, *options),
                *("--output", str(folder / name), "--json"),
            ]
            for name, options in SMALL.items()
        }
        | {
            "reference-networks": [
                *("run", "--model", "fc-token,width=8", "--plugin", "orthogonal-walk", "-o", "steps=2"),
                *("--output", str(folder / "reference-networks"), "--json"),
            ]
        },
    )


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
    listing = run_installed(installed, tmp_path, {"listing": ["plugins"]})["listing"]
    assert listing.code == 0, listing.err
    assert all(name in listing.out for name in ENTRY_POINTS)
    assert set(ENTRY_POINTS) == {*SMALL, "reference-networks"}, "the one plugin without an analysis"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_installed_wheel_runs_every_bundled_analysis_on_the_embedded_model(
    ran: dict[str, Ended], name: str
) -> None:
    ended = ran[name]
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["analyses"][name]["status"] == "done"
    assert document["analyses"][name]["metrics"]
    assert Path(document["run"]).resolve() == ended.folder.resolve()
    assert Path(document["report"]).resolve().is_relative_to(ended.folder.resolve())
    assert "<html" in Path(document["report"]).read_text(encoding="utf-8")


def test_the_installed_wheel_runs_on_a_reference_network(ran: dict[str, Ended]) -> None:
    ended = ran["reference-networks"]
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["status"] == "done"
