"""What the packaging files promise each other: one set of commands, one artifact path, every plugin declared."""

from __future__ import annotations

import configparser
import re
import runpy
import subprocess
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
INSTALL_AND_RUN = "pip install -c constraints.txt . && probekit run"
INSTALL_AND_TEST = "pip install -c constraints.txt tox && tox"
DEFAULT_ENVIRONMENTS = {"lint", "types", "imports", "tests", "docs", "reports"}
# Spelled in parts, so that this file does not name what it looks for.
REGISTRY_HOSTS = [
    ".".join(labels)
    for labels in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    ]
]
NOT_TEXT = {".safetensors", ".png", ".gz", ".whl", ".woff2"}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


@pytest.fixture(scope="module")
def tox_ini() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(read("tox.ini"))
    return parser


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read(".github/workflows/ci.yml"))
    return loaded


@pytest.fixture(scope="module")
def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def workflow_steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def environments(tox_ini: configparser.ConfigParser) -> set[str]:
    return set(re.split(r"[,\s]+", tox_ini["tox"]["env_list"].strip()))


def test_uploaded_artifact_is_what_the_reports_environment_writes(
    tox_ini: configparser.ConfigParser, workflow: dict[str, Any]
) -> None:
    uploads = [step for step in workflow_steps(workflow) if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert [upload["with"]["path"] for upload in uploads] == ["reports/output/"]
    [upload] = uploads
    assert upload["with"]["if-no-files-found"] == "error"
    uploaded = PurePosixPath(upload["with"]["path"])

    assert tox_ini["testenv:reports"]["commands"].strip() == "python reports/build.py"
    assert PurePosixPath(runpy.run_path(str(ROOT / "reports" / "build.py"))["OUTPUT"]) == uploaded
    assert "reports" in environments(tox_ini)


def test_building_the_reports_removes_what_an_earlier_build_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = runpy.run_path(str(ROOT / "reports" / "build.py"))
    old = tmp_path / build["OUTPUT"] / "old" / "report.html"
    old.parent.mkdir(parents=True)
    old.touch()
    ran: list[list[str]] = []

    def carry_out(arguments: list[str], **_settings: Any) -> subprocess.CompletedProcess[str]:
        assert not old.exists()
        ran.append(arguments)
        return subprocess.CompletedProcess(arguments, 3 if "leakage-audit" in arguments else 0, "what it printed\n")

    monkeypatch.setitem(build["main"].__globals__, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", carry_out)
    assert build["main"]() == 3
    assert "The report 'audit' failed with status 3." in capsys.readouterr().err
    written = [arguments[arguments.index("--output") + 1] for arguments in ran]
    assert len(set(written)) == len(written) == len(build["REPORTS"]) + len(build["AFTER"]) + 1
    assert written[-1] == str(build["OUTPUT"] / "index.html")


def test_the_artifact_path_is_not_kept_in_git() -> None:
    assert "/reports/output/" in read(".gitignore").splitlines()


def test_public_ci_installs_tox_with_the_constraints_and_runs_it_whole(workflow: dict[str, Any]) -> None:
    commands = [step["run"].strip() for step in workflow_steps(workflow) if "run" in step]
    install, run = INSTALL_AND_TEST.split(" && ")
    assert commands.index(install) < commands.index(run)


def test_default_environments_are_all_checks_and_end_with_the_tests(tox_ini: configparser.ConfigParser) -> None:
    assert environments(tox_ini) == DEFAULT_ENVIRONMENTS
    assert tox_ini["tox"]["env_list"].split()[-1] == "tests"
    assert {"testenv:slow", "testenv:bench"} <= set(tox_ini.sections())


@pytest.mark.parametrize("command", [INSTALL_AND_RUN, INSTALL_AND_TEST])
def test_readme_gives_each_command_as_one_line_of_its_own(command: str) -> None:
    assert f"    {command}" in read("README.md").splitlines()


def test_ci_runs_the_command_that_the_readme_gives_for_the_tests() -> None:
    assert INSTALL_AND_TEST in read(".ci/run")


def test_ci_script_is_valid_bash_that_stops_at_the_first_error() -> None:
    assert "set -euo pipefail" in read(".ci/run").splitlines()
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "name", ["torch", "transformers", "accelerate", "pluggy", "bitsandbytes", "safetensors", "click"]
)
def test_what_the_core_stands_on_is_declared(project: dict[str, Any], name: str) -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project["project"]["dependencies"]}
    assert name in declared


def test_every_declared_requirement_allows_its_pinned_version(project: dict[str, Any]) -> None:
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for line in read("constraints.txt").splitlines()
        if line and not line.startswith("#")
        for pin in [Requirement(line)]
    }
    assert pins["torch"] == "2.13.0"
    requirements = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for group in project["dependency-groups"].values():
        requirements += [entry for entry in group if isinstance(entry, str)]
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_every_bundled_plugin_has_one_entry_point_and_every_entry_point_a_plugin(project: dict[str, Any]) -> None:
    folder = ROOT / "plugins" / "probekit_plugins"
    sources = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}
    sources |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    # What several of them share implements no hook.
    modules = {f"probekit_plugins.{name}" for name, path in sources.items() if "@probekit.hookimpl" in path.read_text()}
    entry_points = project["project"]["entry-points"]["probekit"]
    assert sorted(entry_points.values()) == sorted(modules)
    assert {name: f"probekit_plugins.{name.replace('-', '_')}" for name in entry_points} == entry_points


@pytest.mark.parametrize("package", ["probekit", "plugins/probekit_plugins"])
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_no_file_names_a_package_registry(tracked_files: list[Path]) -> None:
    naming = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files
        if path.suffix not in NOT_TEXT
        for text in [path.read_text(encoding="utf-8", errors="ignore")]
        for host in REGISTRY_HOSTS
        if host in text
    ]
    assert naming == []
