"""`probekit plugins new`: what it writes is in good style, and what it refuses is said. That it works when installed is
in tests/test_new_plugin.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = {
    "pyproject.toml",
    "README.md",
    ".gitignore",
    ".github/workflows/tests.yml",
    "my_norms/__init__.py",
    "my_norms/py.typed",
    "tests/conftest.py",
    "tests/test_my_norms.py",
}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["model", "activations"])
def test_a_whole_distribution_is_written(probekit_cli: Any, tmp_path: Path, kind: str) -> None:
    ended = probekit_cli("plugins", "new", "my-norms", "--kind", kind)
    assert (ended.code, ended.err) == (0, "")
    folder = tmp_path / "my-norms"
    assert files(folder) == FILES
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"] == {"probekit": {"my-norms": "my_norms"}}
    assert project["project"]["dependencies"] == ["probekit>=0.1"]
    assert "test" in project["dependency-groups"]
    assert not {"license", "authors"} & set(project["project"])
    assert "No licence is given" in (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load((folder / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]["steps"]
    assert "class MyNorms(probekit." in (folder / "my_norms" / "__init__.py").read_text(encoding="utf-8")
    for path in FILES:
        assert "$" not in (folder / path).read_text(encoding="utf-8")


def test_the_next_three_commands_are_said(probekit_cli: Any, tmp_path: Path) -> None:
    out = probekit_cli("plugins", "new", "my-norms", "--output", tmp_path / "a place").out
    assert [line.strip() for line in out.splitlines() if line.startswith("    ")] == [
        f"python -m pip install -e '{tmp_path / 'a place'}' pytest",
        "probekit run --model demo --plugin my-norms",
        f"python -m pytest '{tmp_path / 'a place'}'",
    ]
    assert "python -m pytest ./mine" in probekit_cli("plugins", "new", "mine").out


def test_an_author_gives_a_licence(probekit_cli: Any, tmp_path: Path) -> None:
    author = 'Ada "A" Łovelace \\ $name'
    assert probekit_cli("plugins", "new", "my-norms", "--author", author).code == 0
    folder = tmp_path / "my-norms"
    assert files(folder) == FILES | {"LICENSE"}
    assert author in (folder / "LICENSE").read_text(encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["authors"], project["license"]) == ([{"name": author}], "MIT")
    for wrong in ("", " ", "a\x07b"):
        assert probekit_cli("plugins", "new", "other", "--author", wrong).code == 2


@pytest.mark.parametrize(
    ("given", "name", "package", "analysis"),
    [
        ("My_Norms", "my-norms", "my_norms", "MyNorms"),
        ("a..b--c", "a-b-c", "a_b_c", "ABC"),
        ("x2", "x2", "x2", "X2"),
        ("field", "field", "field", "FieldAnalysis"),
        ("exception", "exception", "exception", "ExceptionAnalysis"),
        ("none", "none", "none", "NoneAnalysis"),
    ],
)
def test_names_are_made_from_one(
    probekit_cli: Any, tmp_path: Path, given: str, name: str, package: str, analysis: str
) -> None:
    assert probekit_cli("plugins", "new", given).code == 0
    source = (tmp_path / name / package / "__init__.py").read_text(encoding="utf-8")
    assert f"\nclass {analysis}(probekit." in source
    assert f'    name = "{name}"\n' in source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my norms", "'my norms' is no name of a plugin; expected letters, digits and hyphens"),
        ("-norms-", "is no name of a plugin"),
        ("../norms", "is no name of a plugin"),
        ("normß", "is no name of a plugin"),
        ("2norms", "'2norms' cannot be a Python package"),
        ("lambda", "'lambda' cannot be a Python package"),
        ("pseudo-inverse", "There is a plugin 'pseudo-inverse' already"),
        ("Pseudo_Inverse", "There is a plugin 'pseudo-inverse' already"),
        ("reference-networks", "There is a plugin 'reference-networks' already"),
        ("json", "There is a Python package 'json' already"),
        ("torch", "There is a Python package 'torch' already; choose another name, such as my-torch."),
        ("probekit", "There is a Python package 'probekit' already"),
        ("pytest", "There is a Python package 'pytest' already"),
        ("tests", "A plugin's folder has a place of its own for 'tests'; choose another name, such as my-tests."),
        ("conftest", "A plugin's folder has a place of its own for 'conftest'; choose another name"),
        ("build", "A plugin's folder has a place of its own for 'build'"),
        ("dist", "A plugin's folder has a place of its own for 'dist'"),
        ("License", "A plugin's folder has a place of its own for 'license'"),
        ("n" * 31, "has 31 characters; choose one of at most 30."),
    ],
)
def test_a_name_that_is_none_or_taken_is_refused(probekit_cli: Any, tmp_path: Path, name: str, message: str) -> None:
    ended = probekit_cli("plugins", "new", "--", name)
    assert ended.code == 2
    assert message in ended.sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["test-norms", "norms-test", "fixtures"])
def test_a_name_like_that_of_a_test_makes_tests_that_start(probekit_cli: Any, tmp_path: Path, name: str) -> None:
    assert probekit_cli("plugins", "new", name).code == 0
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", f"./{name}"]
    environment = {**os.environ, "PYTHONPATH": os.fspath(tmp_path / name)}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 tests collected" in ended.stdout


def test_a_folder_that_is_not_empty_is_left_alone(probekit_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "my-norms").mkdir()
    assert probekit_cli("plugins", "new", "my-norms").code == 0  # an empty one is taken
    ended = probekit_cli("plugins", "new", "my-norms")
    assert ended.code == 2
    assert "'my-norms' exists and is not an empty folder" in ended.sentence
    (tmp_path / "file").write_text("")
    assert "is not an empty folder" in probekit_cli("plugins", "new", "mine", "--output", tmp_path / "file").sentence
    assert "cannot be written" in probekit_cli("plugins", "new", "mine", "--output", tmp_path / "file" / "x").sentence


def test_an_unknown_kind_is_refused(probekit_cli: Any, tmp_path: Path) -> None:
    assert probekit_cli("plugins", "new", "my-norms", "--kind", "weights").code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["model", "activations"])
@pytest.mark.parametrize("name", ["a", "ab-cd", "abcdefghijklmnopqrstuvwxyzabcd"])
def test_what_is_written_is_in_good_style(probekit_cli: Any, tmp_path: Path, kind: str, name: str) -> None:
    if shutil.which("ruff") is None:
        pytest.skip("needs ruff")
    assert probekit_cli("plugins", "new", name, "--kind", kind).code == 0
    for words in (["check"], ["format", "--check", "--diff"]):
        ended = subprocess.run(
            ["ruff", *words, "--no-cache", "."], cwd=tmp_path / name, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_what_is_written_is_typed(probekit_cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for kind in ("model", "activations"):
        assert probekit_cli("plugins", "new", "my-norms", "--kind", kind, "--output", kind).code == 0
        words = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache"]
        ended = subprocess.run(words, cwd=tmp_path / kind, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
