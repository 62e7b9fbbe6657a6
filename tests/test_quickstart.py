"""The quickstart is executed: every command on its page, in order, in one empty folder, by the installed probekit.

The guides are too, among the slow tests: their commands search for longer.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block of a page that is executed, and what came of it."""

    language: str
    source: str
    output: str
    seconds: float


def executable(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of the fenced blocks that are commands or Python, in order; `pip install` is done already."""
    for language, source in re.findall(r"^```(sh|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield language, re.sub(r"^pip install .*\n", "", source, flags=re.MULTILINE)


def execute(language: str, source: str, folder: Path, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-eu", "-c", source] if language == "sh" else [sys.executable, "-c", source]
    # `probekit` is the one beside this Python, whatever else is installed.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def executed(folder: Path) -> list[Block]:
    blocks = []
    for language, source in executable(QUICKSTART):
        began = time.monotonic()
        done = execute(language, source, folder)
        assert done.returncode == 0, f"{source}\nends with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        blocks.append(Block(language, source, done.stdout, time.monotonic() - began))
    return blocks


def output_of(executed: list[Block], start: str) -> str:
    """What the block printed that begins with that text."""
    [found] = [block.output for block in executed if block.source.startswith(start)]
    return found


def test_every_fenced_block_is_executed_or_shows_an_output() -> None:
    """A command in a block of another kind, or indented, would be one that nothing runs."""
    assert set(re.findall(r"^```(\w*)$", QUICKSTART, re.MULTILINE)) - {""} == {"sh", "python", "text", "json"}
    outside = re.sub(r"^```.*?^```$", "", QUICKSTART, flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^ {4}.*", outside, re.MULTILINE)


def test_every_report_that_was_announced_is_there_and_asks_nothing_of_the_network(
    executed: list[Block], folder: Path
) -> None:
    printed = [block.output for block in executed if block.language == "sh"]
    reports = [folder / path for text in printed for path in re.findall(r"^(?:Report|Comparison): (.+)$", text, re.M)]
    assert len(reports) >= 4
    for report in reports:
        page = html.unescape(report.read_text(encoding="utf-8"))
        assert "default-src 'none'" in page
        assert not re.search(r"""(?:src|href)=["']?https?:""", page)


def test_the_main_job_prints_its_finding_and_its_report(executed: list[Block], folder: Path) -> None:
    [shown] = re.findall(r"```text\n(gradient-inverter: .*?)```", QUICKSTART, re.DOTALL)
    pattern = ".+".join(re.escape(part) for part in shown.strip().split("…"))
    assert re.fullmatch(pattern, output_of(executed, "probekit run\n").strip())
    [run] = (folder / "probekit-runs").glob("*gradient-inverter*")
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "done"


def test_the_folders_and_pages_that_the_text_names_are_there(executed: list[Block], folder: Path) -> None:
    for name in ("last-block/report.html", "both/report.html", "trained-and-random/comparison.html", "comparison.html"):
        assert (folder / name).is_file(), name
    both = json.loads((folder / "both" / "run.json").read_text(encoding="utf-8"))
    assert set(both["analyses"]) == {"exact-inverter", "pseudo-inverse"}


def test_options_and_prompt_are_what_the_command_said(executed: list[Block], folder: Path) -> None:
    configuration = json.loads((folder / "last-block" / "run.json").read_text(encoding="utf-8"))["configuration"]
    options = configuration["options"]["gradient-inverter"]
    assert (options["sites"], options["restarts"], options["steps"]) == ("block.-1", 4, 60)
    assert (configuration["seed"], configuration["prompts"]) == (0, ["It was the best of times."])
    again = json.loads((folder / "other-seed" / "run.json").read_text(encoding="utf-8"))["configuration"]
    assert again == configuration | {"seed": 1}


def test_the_lists_name_what_there_is(executed: list[Block]) -> None:
    listed = output_of(executed, "probekit plugins")
    assert "exact-inverter" in listed
    assert "restarts" in listed
    shown = output_of(executed, "probekit models show")
    assert "block.0 … block.5" in shown
    assert "exact-inverter.sites" in shown


def test_json_has_the_shape_that_is_shown(executed: list[Block], folder: Path) -> None:
    [text] = re.findall(r"```json\n(.*?)```", QUICKSTART, re.DOTALL)
    shown, printed = json.loads(text), json.loads((folder / "other-seed.json").read_text(encoding="utf-8"))
    assert set(printed) == set(shown)
    assert set(printed["analyses"]) == set(shown["analyses"])
    assert set(printed["analyses"]["gradient-inverter"]) == set(shown["analyses"]["gradient-inverter"])
    assert printed["status"] == "done"
    assert (folder / printed["report"]).is_file()


def test_python_prints_both_findings_and_a_proof(executed: list[Block]) -> None:
    [block] = [block for block in executed if block.language == "python"]
    exact, pseudo_inverse, verified = block.output.splitlines()
    assert exact.startswith("exact-inverter: The prompt came back exactly")
    assert pseudo_inverse.startswith("pseudo-inverse: ")
    assert verified == "1.0"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("guide", sorted(path.name for path in (ROOT / "docs" / "guides").glob("*.md")))
def test_every_command_of_a_guide_works(guide: str, tmp_path: Path) -> None:
    blocks = list(executable((ROOT / "docs" / "guides" / guide).read_text(encoding="utf-8")))
    assert blocks
    for language, source in blocks:
        done = execute(language, source, tmp_path, seconds=900)
        assert done.returncode == 0, f"{source}\nends with {done.returncode}:\n{done.stdout}\n{done.stderr}"


def test_the_first_command_of_the_readme_is_that_of_the_quickstart() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [first] = re.findall(r"^ {4}(pip install .*probekit.*)$", readme, re.MULTILINE)[:1]
    commands = [line for language, source in executable(QUICKSTART) if language == "sh" for line in source.splitlines()]
    assert shlex.split(first.split("&&")[-1]) == shlex.split(commands[0])
