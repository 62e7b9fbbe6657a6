"""Folders full of junk: what `probekit runs`, `compare`, `report` and `verify` say of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import probekit.activations  # noqa: F401 (whoever imports it first waits for seconds)
from probekit.cli.runs import show
from probekit.report import Document, render_html
from probekit.runs.comparison import compare
from probekit.runs.directory import RunDirectory
from probekit.runs.figures import save_figures
from probekit.runs.index import index_runs, write_index, write_summary
from probekit.runs.outcome import read_run
from probekit.runs.verify import verify
from tests.fuzz.harness import Target, answer, few, limited_in_time, many, only_in
from tests.fuzz.pages import small_page
from tests.fuzz.places import scratch
from tests.fuzz.values import byte_changes, changes, json_text, json_values, texts, with_byte_changes, with_changes

ENTRY = {"status": "done"}
MANIFEST: dict[str, Any] = {
    "schema": 1,
    "status": "done",
    "command": "probekit run",
    "argv": [],
    "configuration": {
        "model": {"name": "demo", "weights": "random", "dtype": "float32", "quantization": "int8"},
        "plugins": ["probe"],
        "options": {"probe": {"steps": 1}},
        "special_tokens": True,
        "seed": 0,
    },
    "versions": {"probekit": "0.1.0"},
    "analyses": {"probe": ENTRY},
    "joint": {},
}
DOCUMENTS: dict[str, Any] = {
    "run.json": MANIFEST,
    "timings.json": {"started": "2026-01-01T00:00:00+00:00", "analyses": {"probe": 1.5}, "load": 0.5},
    "study.json": {"title": "A study", "cells": {}},
    "verdicts.json": {"a": {"verdict": "holds", "met": True}, "b": {"verdict": "fails", "met": False}},
    "page.json": {"pages": [small_page().to_json()], "cells": {"done": 1, "missing": 1, "failed": 0}},
    "result.json": {"schema": 1, "finding": "F. G.", "metrics": {}, "tables": {}, "sequences": {}, "notes": []},
    "recording.json": {
        "schema": 1,
        "model": {},
        "origin": {"model": {"name": "demo"}},
        "sites": {"norm": {"shape": [4], "dtype": "float32"}},
        "prompts": {"count": 1, "tokens": 2},
        "blocks": 2,
        "storage": {"batch_tokens": 10},
    },
    "index.jsonl": {"shard": "shard-00000.safetensors", "prompts": 1, "tokens": 2, "sha256": "0"},
}
PLACES = ["", "a/", "a/b/", "study/", "study/cells/0/", "study/cells/1/", "run/", "run/analyses/probe/", ".hidden/"]
NAMES = [*DOCUMENTS, "DONE", "report.html", "summary.md", "comparison.html", "junk", "hashes.json", "config.toml"]


def page_of_ours(title: str) -> bytes:
    return render_html(Document(title, "q", facts=[("Model", "m"), ("Analyses", "a, b")])).encode(errors="replace")


PAGES = [page_of_ours("Comparison: x and y"), page_of_ours("Runs in here"), b"<title>Comparison", b"\xff\xfe<"]

contents: st.SearchStrategy[bytes] = (
    st.sampled_from(
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"\xff",
            b"{" * 5000,
            *PAGES,
            *(json.dumps(d).encode() for d in DOCUMENTS.values()),
        ]
    )
    | st.tuples(st.sampled_from(PAGES), byte_changes).map(lambda drawn: with_byte_changes(*drawn))
    | json_values.map(json_text).map(str.encode)
    | st.binary(max_size=30)
)
own_contents = st.tuples(st.sampled_from(sorted(DOCUMENTS)), changes).map(
    lambda drawn: (drawn[0], json_text(with_changes(DOCUMENTS[drawn[0]], drawn[1])).encode())
)
whole_documents = st.sampled_from(sorted(DOCUMENTS)).map(lambda name: (name, json.dumps(DOCUMENTS[name]).encode()))
kinds = st.sampled_from(["file", "file", "file", "file", "folder", "link", "loop", "out", "unreadable"])
things = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        own_contents | whole_documents | whole_documents | st.tuples(st.sampled_from(NAMES) | texts, contents),
        kinds,
    ),
    max_size=9,
)


def strewn(own: Path, given: list[tuple[str, tuple[str, bytes], str]]) -> None:
    for place, (name, content), kind in given:
        path = own / place / name.replace("/", "_")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path):
                continue
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(own)
            elif kind == "loop":
                path.symlink_to(path.name)
            elif kind == "out" and path.suffix != ".html":  # folders and pages may be linked into a folder of runs
                (own.parent / "outside" / path.name).write_bytes(content)
                path.symlink_to(own.parent / "outside" / path.name)
            else:
                path.write_bytes(content)
        except (OSError, ValueError):  # a name that no file can have
            continue


def check(given: list[tuple[str, tuple[str, bytes], str]]) -> None:
    with scratch() as own:
        strewn(own, given)
        with only_in(own):
            ask(own)


def ask(own: Path) -> None:
    index = answer(lambda: index_runs(own, cells=True))
    assert index is not None
    json.dumps(index.document(), allow_nan=False)
    show(index, 150)
    show(index, None)
    answer(lambda: write_index(index, own / "index-of-all.html"))
    answer(lambda: write_summary(index, own / "summary-of-all.md"))
    for place in ("run", "study", "a", "study/cells/0"):
        verified = answer(lambda place=place: verify(own / place))
        if verified is not None:
            json.dumps(verified.document(), allow_nan=False)
    answer(lambda: read_run(own / "run"))
    answer(lambda: compare([own / "run", own / "study" / "cells" / "0"], own / "new.html"))
    answer(lambda: save_figures(own / "study", own / "figures", ["csv"]))
    answer(lambda: RunDirectory.open(own / "a"))


TARGETS = [Target("folders", things, check, few=30, many=4000)]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit.report.html.vega_runtime", lambda: "void 0;")


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_junk_is_listed_or_left_out(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"schema": 1}', b"[" * 50_000, b"9" * 5000, b"\0", b"NaN"])
def test_each_document_that_is_none(name: str, content: bytes) -> None:
    whole = [("study/", (each, json.dumps(DOCUMENTS[each]).encode()), "file") for each in DOCUMENTS if each != name]
    with limited_in_time():
        check([*whole, ("study/", (name, content), "file")])
        check([("run/", (name, content), "file"), ("study/cells/0/", (name, content), "file")])


def test_many_folders_deep(tmp_path: Path) -> None:
    deep = tmp_path / "own" / "/".join("d" * 300)
    deep.mkdir(parents=True)
    (deep / "run.json").write_bytes(json.dumps(MANIFEST).encode())
    with limited_in_time():
        ask(tmp_path / "own")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", [*DOCUMENTS, "comparison.html", "summary.md"])
def test_nobody_waits_for_a_pipe_or_reads_a_device(name: str, make: Callable[[Path], None]) -> None:
    with scratch() as own, limited_in_time():
        for each in DOCUMENTS:
            for place in ("run", "study", "study/cells/0"):
                (own / place).mkdir(parents=True, exist_ok=True)
                (own / place / each).write_bytes(json.dumps(DOCUMENTS[each]).encode())
        for place in ("run", "study", "study/cells/0"):
            (own / place / name).unlink(missing_ok=True)
            make(own / place / name)
        with only_in(own):
            ask(own)


def test_a_run_that_is_a_link_to_itself_is_no_run(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("run", "study", "a"):
        (own / name).symlink_to(name)
    ask(own)
