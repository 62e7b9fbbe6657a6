"""From nothing to one's own analysis in a report: a plugin is begun, installed with pip into a fresh virtual
environment, run on the embedded model, tested, checked and read, as a stranger would with what is printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.reading import CHARTS, Reader, chromium

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"my-norms": "activations", "my-senses": "model"}
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")


class Stranger:
    """A folder and a virtual environment with nothing of this clone in it but an installed probekit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.programs = folder / "environment" / "bin"
        venv.create(folder / "environment", symlinks=True)
        [packages] = (folder / "environment" / "lib").glob("python*/site-packages")
        # torch and the other large packages, which no test downloads: a .pth file of theirs is not read again, so that
        # an editable probekit among them stays out of the way.
        heavy = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (packages / "heavy.pth").write_text("\n".join(heavy) + "\n", encoding="utf-8")
        self.call("python", "-m", "pip", "install", "--quiet", "--ignore-installed", *OFFLINE, ROOT)

    def call(self, program: str, *words: object) -> str:
        """Standard output of a program of the environment."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COV_", "COVERAGE_", "PYTEST_", "PIP_"))
            and name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        ended = subprocess.run(
            [self.programs / program, *map(str, words)],
            cwd=self.folder,
            env=inherited | {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """Somebody who has typed what `probekit plugins new` says, for a plugin of each kind."""
    stranger = Stranger(tmp_path_factory.mktemp("stranger").resolve())
    for name, kind in KINDS.items():
        stranger.call("probekit", "plugins", "new", name, "--kind", kind)
        stranger.call("python", "-m", "pip", "install", "--quiet", *OFFLINE, f"./{name}")
    return stranger


@pytest.fixture(scope="module")
def report(stranger: Stranger) -> Path:
    """The report of a run of both on the embedded model."""
    plugins = [word for name in KINDS for word in ("--plugin", name)]
    printed = stranger.call("probekit", "run", "--model", "demo", *plugins, "--output", "run", "--json")
    document = json.loads(printed)
    assert {name: entry["status"] for name, entry in document["analyses"].items()} == dict.fromkeys(KINDS, "done")
    assert all(entry["metrics"] for entry in document["analyses"].values())
    return stranger.folder / document["report"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def test_the_probekit_that_is_used_is_the_installed_one(stranger: Stranger) -> None:
    code = "import probekit, my_norms; print(probekit.__file__); print(my_norms.__file__)"
    for path in stranger.call("python", "-c", code).split():
        assert Path(path).is_relative_to(stranger.programs.parent)


def test_what_was_begun_is_listed(stranger: Stranger) -> None:
    listed = {entry["plugin"]: entry for entry in json.loads(stranger.call("probekit", "plugins", "list", "--json"))}
    for name in KINDS:
        assert (listed[name]["status"], listed[name]["version"]) == ("loaded", "0.1.0")
        assert list(listed[name]["analyses"]) == [name]
        assert f"\n{name} 0.1.0: {name}\n" in stranger.call("probekit", "--version")


@pytest.mark.parametrize("name", KINDS)
def test_its_own_tests_pass_as_they_were_written(stranger: Stranger, name: str) -> None:
    printed = stranger.call("python", "-m", "pytest", "-q", "-W", "error", f"./{name}")
    assert "3 passed" in printed


@pytest.mark.parametrize("name", KINDS)
def test_it_passes_every_check(stranger: Stranger, name: str) -> None:
    assert stranger.call("probekit", "plugins", "check", name).splitlines()[-1] == "7 checks, all ok."


@pytest.mark.chromium
def test_its_section_is_read_in_the_report(browser: Any, report: Path) -> None:
    reader = Reader(browser, report, viewport={"width": 1200, "height": 900})
    sections = dict.fromkeys(KINDS, "")
    for section in reader.page.query_selector_all("section"):
        for name in KINDS:
            heading = section.query_selector("h2")
            if heading is not None and name in heading.inner_text():
                sections[name] = section.inner_text()
    assert "The longest activations are at block." in sections["my-norms"]
    assert "Mean L2 norm of the activations, by site and position" in sections["my-norms"]
    assert "The share of the last token itself in the sensitivity" in sections["my-senses"]
    charts = reader.page.evaluate(CHARTS)
    assert len(charts) == 3, "a heatmap and lines of the one, a heatmap of the other"
    assert all(drawn and width > 200 and height > 40 for drawn, width, height in charts)
    assert (reader.complaints, reader.requests) == ([], [report.as_uri()])
    reader.context.close()
