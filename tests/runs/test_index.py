"""An index of a folder: what is there, what is wrong with it, and a page that leads to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import probekit
from probekit.activations.format import INDEX, MANIFEST
from probekit.plugins import Plugins
from probekit.runs import entries, resolve
from probekit.runs.comparison import run_trained_and_random
from probekit.runs.entries import Entry
from probekit.runs.index import Index, in_words, index_runs, write_index
from probekit.runs.studies import study
from tests.report.reading import Reader, chromium

STUDY = """
title = "What a block keeps"
[runs.decoders]
plugins = ["pseudo-inverse"]
model = "{model}"
prompts = ["Once", "The sky is blue."]
seeds = 2
[[expectations]]
id = "C1"
claim = "all tokens come back"
figures.kept = {{ run = "decoders", metric = "{metric}" }}
verdicts = {{ "reproduced" = "least(kept) >= 0" }}
"""


@pytest.fixture(scope="module")
def made(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind: a run, a pair with random weights and its comparison, a study of two cells, a recording."""
    root = tmp_path_factory.mktemp("runs")
    model = str(tiny_gpt2())
    run = probekit.run(model, "pseudo-inverse", output=root / "single")
    values = {"model": {"name": model}, "plugins": ["pseudo-inverse"]}
    run_trained_and_random(resolve([("test", values)], Plugins()), Plugins(), root / "pair")
    file = root / "blocks.toml"
    metric = next(name for name, value in run.result.metrics.items() if isinstance(value, float))
    file.write_text(STUDY.format(model=model, metric=metric), encoding="utf-8")
    study(file, root / "deep" / "study")
    probekit.record(model, ["The sky is blue.", "Once"], output=root / "recorded")
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def found(index: Index) -> dict[str, Entry]:
    return {str(index.row(entry)[0]): entry for entry in index.entries}


def rewrite(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(document), encoding="utf-8")


def test_each_kind_is_listed_with_what_a_reader_wants_to_know(made: Path, tiny_gpt2: Callable[..., Path]) -> None:
    index = index_runs(made)
    listed = found(index)
    assert {name: (entry.kind, entry.status) for name, entry in listed.items()} == {
        "single": ("run", "done"),
        "pair/trained": ("run", "done"),
        "pair/random": ("run", "done"),
        "pair/comparison.html": ("comparison", "done"),
        "deep/study": ("study", "done"),
        "recorded": ("recording", "done"),
    }
    assert index.summary == "3 runs, 1 study, 1 comparison, 1 recording."
    run = probekit.read_run(made / "single")
    timings = json.loads((made / "single" / "timings.json").read_text(encoding="utf-8"))
    single = listed["single"]
    assert run.result.finding.startswith(single.finding)
    assert single.finding
    assert single.analyses == ["pseudo-inverse"]
    assert single.begun == datetime.fromisoformat(timings["started"])
    assert single.seconds == pytest.approx(timings["load"] + timings["analyses"]["pseudo-inverse"])
    assert single.report == run.report_path
    name = str(tiny_gpt2())
    assert {entry.model for entry in listed.values()} == {name}
    assert listed["pair/random"].model_in_words == f"{name} (random weights)"
    assert listed["pair/comparison.html"].analyses == ["pseudo-inverse"]
    assert "random" in listed["pair/comparison.html"].finding
    assert listed["deep/study"].finding.startswith("What a block keeps. The claim holds.")
    assert listed["recorded"].finding == "2 prompts, 11 tokens at 3 sites."
    seconds = sum(cell.seconds or 0 for cell in listed["deep/study"].cells)
    assert listed["deep/study"].seconds == pytest.approx(seconds)
    assert seconds > 0


def test_the_cells_of_a_study_are_listed_when_they_are_asked_for(made: Path) -> None:
    cells = [entry for entry in index_runs(made, cells=True).entries if entry.kind == "cell"]
    assert sorted(cell.path.parent for cell in cells) == [made / "deep" / "study" / "cells"] * 2
    assert [cell.status for cell in cells] == ["done", "done"]
    assert [entry.kind for entry in index_runs(made / "deep" / "study").entries] == ["study"]
    assert [entry.kind for entry in index_runs(made / "single").entries] == ["run"]


def test_the_newest_comes_first_and_what_has_no_date_last(folder: Path) -> None:
    for name, started in (("pair/trained", "2031-01-01T00:00:00+02:00"), ("single", "2030-12-31T23:30:00+00:00")):
        rewrite(folder / name / "timings.json", started=started)
    (folder / "deep" / "broken").mkdir()
    (folder / "deep" / "broken" / "run.json").write_text("{")
    names = list(found(index_runs(folder)))
    assert names[:2] == ["single", "pair/trained"]
    assert names[-1] == "deep/broken"


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("run.json", b"{", r"The file '.*run\.json' is damaged"),
        ("run.json", b"\xff\xfe", r"The file '.*run\.json' is damaged"),
        ("run.json", b"[" * 100_000, r"The file '.*run\.json' is damaged"),
        ("run.json", b"[]", r"The file '.*run\.json' is damaged: expected a table"),
        ("run.json", b'{"schema": 99}', r"has the schema 99, and this probekit reads 1 and 2"),
        ("run.json", b'{"project": "of another tool"}', r"has the schema None, and this probekit"),
        ("run.json", b'{"schema": 1, "analyses": {"a": 5}}', r"The file '.*run\.json' is damaged: KeyError"),
        ("run.json", b'{"schema": 1, "configuration": [], "analyses": {}}', r"run\.json' is damaged"),
        ("timings.json", b'{"started": "yesterday", "analyses": {}}', r"The file '.*timings\.json' is damaged"),
        ("timings.json", b'{"started": "9999-12-31T23:59:59-23:59", "analyses": {}}', r"timings\.json' is damaged"),
        ("timings.json", b'{"started": "2026-01-01", "analyses": {"a": NaN}}', r"timings\.json' is damaged"),
        ("timings.json", None, r"has no timings\.json"),
        ("analyses/pseudo-inverse/result.json", b"{", r"The file '.*result\.json' is damaged"),
        ("analyses/pseudo-inverse/result.json", b'{"finding": 5}', r"The file '.*result\.json' is damaged"),
        ("analyses/pseudo-inverse/result.json", None, r"The file '.*result\.json' cannot be read"),
    ],
)
def test_a_damaged_or_foreign_run_says_what_is_wrong_and_ends_nothing(
    folder: Path, file: str, content: bytes | None, sentence: str
) -> None:
    place = folder / "single" / file
    place.unlink()
    if content is not None:
        place.write_bytes(content)
    index = index_runs(folder)
    listed = found(index)
    assert listed["single"].status == "damaged"
    assert re.search(sentence, listed["single"].problem)
    assert "\n" not in listed["single"].problem
    assert len(listed) == 6
    assert index.summary.endswith("; 1 damaged.")
    json.dumps(index.document(), allow_nan=False)


def test_the_beginning_of_a_large_result_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = 'A "quoted" \\ finding – 0.5. And a second sentence.'
    place = folder / "single" / "analyses" / "pseudo-inverse" / "result.json"
    rewrite(place, finding=finding, tables={"large": [{"row": row} for row in range(20_000)]})
    document = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps(document, indent=1), encoding="utf-8")
    assert place.stat().st_size > entries.HEAD
    assert found(index_runs(folder))["single"].finding == 'A "quoted" \\ finding – 0.5.'
    read = []
    real = entries._read
    monkeypatch.setattr(entries, "_read", lambda *given: read.append(given[1]) or real(*given))  # type: ignore[func-returns-value]
    index_runs(folder / "single")
    assert sorted(read) == ["run.json", "timings.json"]


def test_a_failed_and_an_unfinished_run_say_so(folder: Path) -> None:
    analyses = {"pseudo-inverse": {"status": "failed", "error": "It ran out of luck."}}
    rewrite(folder / "single" / "run.json", status="failed", analyses=analyses)
    rewrite(folder / "pair" / "random" / "run.json", status="running")
    index = index_runs(folder)
    listed = found(index)
    assert (listed["single"].status, listed["single"].problem) == ("failed", "pseudo-inverse: It ran out of luck.")
    assert listed["pair/random"].problem == "Not finished."
    assert index.summary == "3 runs, 1 study, 1 comparison, 1 recording; 1 failed, 1 unfinished."


def test_a_study_is_failed_unfinished_or_damaged_by_what_it_came_to(folder: Path) -> None:
    place = folder / "deep" / "study"

    def entry() -> Entry:
        return found(index_runs(folder))["deep/study"]

    page, verdicts = place / "page.json", place / "verdicts.json"
    as_it_was = page.read_text(encoding="utf-8")
    assert json.loads(as_it_was)["cells"] == {"done": 2, "failed": 0, "missing": 0}
    rewrite(page, cells={"done": 1, "failed": 0, "missing": 1})
    assert (entry().status, entry().problem) == ("unfinished", "Not finished: 1 cells are missing.")
    rewrite(page, cells={"done": 1, "failed": 1, "missing": 0})
    assert (entry().status, entry().problem) == ("failed", "Cells that failed: 1.")
    page.write_text(as_it_was, encoding="utf-8")
    rewrite(verdicts, C1={"verdict": "refuted", "met": False})
    assert (entry().status, entry().problem) == ("failed", "Not met: C1.")
    verdicts.write_text("[]", encoding="utf-8")
    assert entry().status == "damaged"
    page.unlink()
    assert (entry().status, entry().problem) == ("running", "Not finished: it has not been judged yet.")


def test_a_recording_is_known_by_the_names_of_its_files_and_may_be_unfinished(folder: Path) -> None:
    assert (entries.RECORDING_FILE, entries.RECORDING_INDEX) == (MANIFEST, INDEX)
    (folder / "recorded" / INDEX).unlink()
    entry = found(index_runs(folder))["recorded"]
    assert (entry.status, entry.problem) == ("unfinished", "Not finished: 0 of 11 tokens are there.")
    (folder / "recorded" / MANIFEST).write_text("{}", encoding="utf-8")
    assert found(index_runs(folder))["recorded"].status == "damaged"


def test_pages_of_others_are_no_comparisons(folder: Path) -> None:
    (folder / "comparison.html").write_text("<!doctype html><title>Comparison of prices</title>")
    (folder / "comparison-2.html").mkdir()
    write_index(index_runs(folder), folder / "index.html")
    assert len(index_runs(folder).entries) == 6


def test_links_in_circles_end_and_what_has_two_names_is_listed_by_its_own(folder: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.move(folder / "recorded", tmp_path / "elsewhere"))
    (folder / "a-link").symlink_to(folder / "single", target_is_directory=True)
    (folder / "up").symlink_to(folder, target_is_directory=True)
    (folder / "pair" / "itself").symlink_to(folder / "pair" / "itself")
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    (folder / "far").symlink_to(elsewhere, target_is_directory=True)
    index = index_runs(folder)
    assert set(found(index)) == {
        "single", "pair/trained", "pair/random", "pair/comparison.html", "deep/study", "far"
    }  # fmt: skip
    assert index.unreadable == []


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(place: Any) -> Any:
        if Path(place).name == "pair":
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)  # a mode would not keep root out
    index = index_runs(folder)
    assert set(found(index)) == {"single", "deep/study", "recorded"}
    assert index.unreadable == [f"The folder '{folder / 'pair'}' cannot be read: Permission denied."]
    page = write_index(index, folder / "index.html").read_text(encoding="utf-8")
    assert "Permission denied" in page
    with pytest.raises(probekit.UsageError, match="pair' cannot be read: Permission denied"):
        index_runs(folder / "pair")


def test_hidden_folders_are_left_out(folder: Path) -> None:
    (folder / "single").rename(folder / ".single.half-made")
    assert "3 runs" not in index_runs(folder).summary


def test_two_thousand_runs_take_seconds(folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    small = folder / "single"
    for name in ("tensors.safetensors", "page.json"):
        (small / "analyses" / "pseudo-inverse" / name).unlink()
    (small / "report.html").write_text("a report")
    for number in range(2000):
        shutil.copytree(small, many / str(number % 20) / str(number), copy_function=os.link)
    began = time.process_time()
    index = index_runs(many)
    write_index(index, many / "index.html")
    assert index.summary == "2,000 runs."
    assert time.process_time() - began < 10


# --- the page --------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    with chromium() as browser:
        reader = Reader(browser, page)
        assert reader.complaints == []
        assert reader.page.evaluate("[violations.length, window.ranHostile ?? null]") == [0, None]
        found: list[str] = reader.page.evaluate("[...document.querySelectorAll('table a')].map((link) => link.href)")
        return found


@pytest.mark.chromium
def test_the_page_leads_to_each_report_wherever_above_it_lies(folder: Path) -> None:
    reports = {
        (folder / name / "report.html").as_uri() for name in ("single", "pair/trained", "pair/random", "deep/study")
    } | {(folder / "pair" / "comparison.html").as_uri()}
    for page in (folder / "index.html", folder.parent / "all of it.html"):
        write_index(index_runs(folder), page)
        write_index(index_runs(folder), page)  # again, in place of the first
        assert set(links(page)) == reports


@pytest.mark.chromium
def test_hostile_names_are_shown_and_lead_nowhere_else(folder: Path) -> None:
    hostile = [
        "</script><script>window.ranHostile = 1<",
        "a\nb",
        "\u202egnp",
        "100% #1?",
        "javascript:alert(1)",
        os.fsdecode(b"\xff"),
        '" onclick="window.ranHostile=1',
    ]
    for name in hostile:
        place = folder / "hostile" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder / "single", place)
    shutil.copytree(folder / "single", folder / "hostile" / "plain + näme 2")
    safe = folder / "hostile" / "plain + näme 2" / "report.html"
    rewrite(safe.with_name("run.json"), analyses={"</td>\ud800\u202e": {"status": "failed", "error": "</script>"}})
    index = index_runs(folder / "hostile")
    assert len(index.entries) == 8
    page = write_index(index, folder / "hostile" / "index.html")
    assert list(map(unquote, links(page))) == [f"file://{safe}"]
    text = page.read_text(encoding="utf-8")
    assert "⟨U+202E⟩gnp" in text
    assert "\u202e" not in text
    for entry in index.entries:
        assert all(value.isprintable() for value in index.texts(entry).values())
    assert json.loads(json.dumps(index.document()))["entries"]


def test_a_page_that_could_not_lead_to_the_reports_or_would_replace_another_file_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    index = index_runs(folder)
    (folder / "notes.html").write_text("<title>Runs in May</title>")
    for output, sentence in (
        (tmp_path / "beside" / "index.html", "is not beside the runs"),
        (folder / "pair" / "index.html", "is not beside the runs"),
        (folder, "is a folder; name a file in it"),
        (folder / "notes.html", "exists and is no index of runs"),
        (tmp_path / "runs" / "single" / ".." / "notes.html", "exists and is no index of runs"),
    ):
        with pytest.raises(probekit.UsageError, match=sentence):
            write_index(index, output)
    for report in ("single/report.html", "pair/comparison.html"):
        with pytest.raises(probekit.UsageError):
            write_index(index_runs(folder / report.split("/")[0]), folder / report)
    assert (folder / "notes.html").read_text() == "<title>Runs in May</title>"


def test_an_empty_folder_is_one_sentence_and_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(probekit.UsageError, match=r"There is no folder 'probekit-runs'; .*`probekit run`\.$"):
        index_runs()
    (tmp_path / "probekit-runs").mkdir()
    index = index_runs()
    assert index.summary == "There are no runs, studies, comparisons or recordings below 'probekit-runs'."
    assert index.summary in write_index(index, "index.html").read_text(encoding="utf-8").replace("&#39;", "'")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (12.34, "12.3 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (119.7, "2 min 0 s")],
)
def test_a_time_is_said_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
