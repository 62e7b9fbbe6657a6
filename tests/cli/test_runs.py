"""`probekit runs`: what it prints for people and for scripts, and the page that it writes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.cli.runs import WIDE, show
from probekit.runs.index import index_runs

SAY_WHAT_WAS_IMPORTED = """
import sys
from probekit.cli import main
try:
    main()
finally:
    print('imported:', *sorted(set(sys.modules) & {'torch', 'transformers', 'probekit_plugins'}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def made(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("listed") / "probekit-runs"
    probekit.run(str(tiny_gpt2()), "pseudo-inverse", output=place / "first")
    shutil.copytree(place / "first", place / "broken")
    (place / "broken" / "run.json").write_text("{")
    return place


def test_without_a_folder_the_runs_of_probekit_run_are_listed_one_after_another(
    probekit_cli: Any, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.parent)
    ended = probekit_cli("runs")
    assert (ended.code, ended.err) == (0, "")
    run = probekit.read_run(made / "first")
    lines = ended.out.splitlines()
    assert lines[0] == "first"
    assert lines[1].startswith("    run, done, 20")
    assert lines[1].endswith(f"{run.manifest['configuration']['model']['name']}, pseudo-inverse")
    assert lines[2].strip()
    assert run.result.finding.startswith(lines[2].strip())
    assert lines[3:5] == ["broken", "    run, damaged"]
    assert "broken/run.json' is damaged" in lines[5]
    assert lines[6:] == ["2 runs; 1 damaged."]
    assert probekit_cli("runs", made).out == ended.out.replace("probekit-runs/broken", str(made / "broken"))


def test_json_is_one_document_and_nothing_else(probekit_cli: Any, made: Path, tmp_path: Path) -> None:
    ended = probekit_cli("runs", made, "--json")
    document = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert document["summary"] == "2 runs; 1 damaged."
    assert document["page"] is None
    first, broken = document["entries"]
    assert first["name"] == "first"
    assert first["report"] == "first/report.html"
    assert first["analyses"] == ["pseudo-inverse"]
    assert first["seconds"] > 0
    assert broken["status"] == "damaged"
    assert broken["begun"] is None
    (tmp_path / "empty").mkdir()
    ended = probekit_cli("runs", tmp_path / "empty", "--json")
    assert json.loads(ended.out)["entries"] == []


def test_the_page_is_written_and_said_to_be(probekit_cli: Any, made: Path) -> None:
    page = made / "index.html"
    ended = probekit_cli("runs", made, "--output", page)
    assert ended.out.splitlines()[-1] == f"Page: {page}"
    assert 'href="first/report.html"' in page.read_text(encoding="utf-8")
    assert json.loads(probekit_cli("runs", made, "--output", page, "--json").out)["page"] == str(page)
    page.unlink()


def test_the_summary_is_the_listing_and_what_each_report_says_in_short(
    probekit_cli: Any, made: Path, tmp_path: Path
) -> None:
    for _ in range(2):  # an earlier one is replaced
        ended = probekit_cli("runs", made, "--summary", tmp_path / "summary.md")
        assert (ended.code, ended.out.splitlines()[-1]) == (0, f"Summary: {tmp_path / 'summary.md'}")
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("# Runs in probekit-runs\n")
    assert re.search(r"^\| first \| done \| .* \| run \|", text, re.MULTILINE)
    assert text.endswith("\n---\n\n" + (made / "first" / "summary.md").read_text())
    (tmp_path / "mine.md").write_text("# Mine")
    ended = probekit_cli("runs", made, "--summary", tmp_path / "mine.md")
    assert (ended.code, "exists and is none of runs" in ended.sentence) == (2, True)
    assert (tmp_path / "mine.md").read_text() == "# Mine"


def test_an_empty_folder_is_a_sentence_and_a_missing_one_an_error(probekit_cli: Any, tmp_path: Path) -> None:
    ended = probekit_cli("runs", tmp_path)
    assert ended.code == 0
    assert ended.out == f"There are no runs, studies, comparisons or recordings below '{tmp_path}'.\n"
    ended = probekit_cli("runs", tmp_path / "nowhere")
    assert ended.code == 2
    assert "There is no folder" in ended.sentence


@pytest.mark.parametrize("width", [40, 80, WIDE - 1, WIDE, 200])
def test_what_is_printed_fits_the_terminal(
    made: Path, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(made.parent)
    show(index_runs(made.name), width)
    lines = capsys.readouterr().out.splitlines()
    names = max(len(word) for line in lines for word in line.split())
    assert all(len(line) <= max(width, names + 4) for line in lines)
    titles = lines[0].split()
    assert (titles[:3] == ["name", "status", "finding,"]) == (width >= WIDE)
    text = " ".join(" ".join(lines).split())
    assert "done" in text
    assert "damaged" in text


def test_neither_torch_nor_a_plugin_is_imported(probekit_process: Any, made: Path) -> None:
    ended = probekit_process("runs", made, "--output", made / "light.html", code=SAY_WHAT_WAS_IMPORTED)
    assert ended.code == 0, ended.err
    assert ended.err.splitlines()[-1] == "imported:"
    (made / "light.html").unlink()
