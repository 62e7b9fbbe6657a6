"""Run directories of others: damaged in one part or another, forged, full of links, with names that climb out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

import probekit
from probekit.cli.runs import show
from probekit.errors import UsageError
from probekit.plugins import Plugins
from probekit.report import Page
from probekit.runs.comparison import compare
from probekit.runs.directory import RunDirectory
from probekit.runs.figures import save_figures
from probekit.runs.index import index_runs, write_index, write_summary
from probekit.runs.outcome import read_run
from probekit.runs.profiling import profile_sentence
from probekit.runs.render import render
from probekit.runs.verify import verify
from probekit_plugins.repetition.sources import decoded, saved
from tests.fuzz.harness import Target, answer, check_sentence, few, limited_in_time, many, only_in
from tests.fuzz.pages import small_page
from tests.fuzz.places import scratch
from tests.fuzz.values import (
    ODD_TEXTS,
    RAW,
    byte_changes,
    changes,
    json_text,
    json_values,
    with_byte_changes,
    with_changes,
)

HIDDEN = {chr(point) for point in (*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
CLIMBING = ["../../../outside", "..", ".", "", "/etc", "a/b", "a\\b", "a\0b", "outside", "link", "\ud800", "x" * 300]


class Made:
    """A whole run, file by file, and a copy of it on disk to compare with; filled in by the fixture."""

    files: dict[str, bytes]
    good: Path
    subject: probekit.Subject
    plugins: Plugins


@pytest.fixture(scope="module", autouse=True)
def _made(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    place = tmp_path_factory.mktemp("runs") / "good"
    Made.plugins = Plugins()
    options = {"sites": "block.0"}
    run = probekit.run(tiny_gpt2(), "pseudo-inverse", ["A b"], options, place, profile=True, manager=Made.plugins)
    assert run.status == "done"
    manifest = json.loads((place / "run.json").read_text(encoding="utf-8"))
    manifest["status"] = "failed"
    manifest["analyses"]["null-space-walk"] = {"status": "done"}
    manifest["analyses"]["clamped-walk"] = {"status": "failed", "error": "No."}
    manifest["joint"] = {"All": {"status": "done"}}
    manifest["broken_plugins"] = {"x": "did not import"}
    page = small_page().to_json()
    directory = RunDirectory(place)
    for name in ("pseudo-inverse", "null-space-walk"):
        directory.write_json(f"analyses/{name}/page.json", page)
        for file in ("result.json", "tensors.safetensors", "options.json", "DONE"):
            content = (place / "analyses" / "pseudo-inverse" / file).read_bytes()
            directory.write(f"analyses/{name}/{file}", content)
    directory.write_json("joint.json", {"pages": [page]})
    directory.write_json("run.json", manifest)
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    left_out = ("report.html", "summary.md")
    Made.files = {path.relative_to(place).as_posix(): path.read_bytes() for path in files if path.name not in left_out}
    Made.good, Made.subject = place, probekit.load(tiny_gpt2())
    yield
    del Made.files, Made.good, Made.subject, Made.plugins


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each input draws a few pages, and the runtime of charts is a megabyte in each; a resumed run would compute."""
    monkeypatch.setattr("probekit.report.html.vega_runtime", lambda: "void 0;")
    monkeypatch.setattr(
        import_module("probekit.runs.execute"), "_load", _enough
    )  # the package has a function of its name


def _enough(*_: Any, **__: Any) -> None:
    raise UsageError("That is what there was to read.")


JSON_FILES = [
    *("run.json", "run.json", "run.json", "timings.json", "joint.json", "profile.json", "hashes.json"),
    *("analyses/pseudo-inverse/result.json", "analyses/pseudo-inverse/page.json"),
    "analyses/pseudo-inverse/options.json",
]
FILES = [*JSON_FILES, "config.toml", "events.jsonl", "analyses/pseudo-inverse/tensors.safetensors"]
KINDS = ["removed", "folder", "link out", "link to itself", "another's", "empty", "link of folder"]

Damage = tuple[str, Any]


def damages() -> st.SearchStrategy[list[Damage]]:
    documents = st.tuples(st.sampled_from(JSON_FILES), changes | json_values)
    torn = st.tuples(st.sampled_from(FILES), byte_changes)
    return st.lists(
        st.tuples(st.just("json"), documents)
        | st.tuples(st.just("json"), documents)
        | st.tuples(st.just("bytes"), torn)
        | st.tuples(st.just("file"), st.tuples(st.sampled_from(FILES), st.sampled_from(KINDS)))
        | st.tuples(st.just("name"), st.sampled_from(CLIMBING)),
        min_size=1,
        max_size=2,
    )


def damaged(files: dict[str, bytes], run: Path, chosen: list[Damage]) -> None:
    """The run of these files in a folder, with the chosen damages."""
    files = dict(files)
    later: list[tuple[str, str]] = []
    for kind, what in chosen:
        if kind == "json":
            name, change = what
            try:
                document = json.loads(files[name])
            except (ValueError, RecursionError):
                continue
            way = isinstance(change, list) and all(isinstance(part, tuple) and len(part) == 3 for part in change)
            document = with_changes(document, change) if way and change else change
            files[name] = json_text(document).encode()
        elif kind == "bytes":
            files[what[0]] = with_byte_changes(files[what[0]], what[1])
        elif kind == "name":
            files["run.json"] = files["run.json"].replace(b'"null-space-walk"', json.dumps(what).encode())
            for name in [name for name in files if name.startswith("analyses/null-space-walk/")]:
                del files[name]
        else:
            later.append(what)
    for name, content in files.items():
        place = run / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    outside = run.parent.parent / "outside"
    for name, content in files.items():
        if name.startswith("analyses/pseudo-inverse/"):
            (outside / Path(name).name).write_bytes(content)
    for name, kind in later:
        _put(run / name, kind, outside)


def _put(place: Path, kind: str, outside: Path) -> None:
    if place.is_dir() or not place.parent.is_dir() or place.parent.is_symlink():
        return
    place.unlink(missing_ok=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "link out":
        place.symlink_to(outside / place.name)
    elif kind == "link to itself":
        place.symlink_to(place.name)
    elif kind == "another's":
        place.write_bytes(b"{}")
    elif kind == "empty":
        place.write_bytes(b"")
    elif kind == "link of folder" and place.parent.name == "pseudo-inverse":
        for file in place.parent.iterdir():
            file.unlink()
        place.parent.rmdir()
        place.parent.symlink_to(outside)


def check(chosen: list[Damage]) -> None:
    """Every way in which a run is read and drawn."""
    on_damaged(chosen, read, drawn)


def on_damaged(chosen: list[Damage], *asked: Callable[[Path, Path], None]) -> None:
    with scratch() as own:
        run = own / "run"
        damaged(Made.files, run, chosen)
        for ask in asked:
            with only_in(own):
                ask(own, run)


def read(own: Path, run: Path) -> None:
    found = answer(lambda: read_run(run))
    if found is not None:
        json.dumps(found.document(), allow_nan=False)
        repr(found)
        for result in found.results.values():
            result._repr_html_()
            json.dumps([result.finding, result.notes]).encode()
    answer(lambda: profile_sentence(run))
    origins = answer(lambda: saved([str(run)], Made.subject))
    if origins is not None:
        decoded(origins[0])
    index = index_runs(own, cells=True)
    json.dumps(index.document(), allow_nan=False)
    for entry in index.entries:
        for text in index.texts(entry).values():
            assert not set(text) & HIDDEN
    show(index, None)
    verified = answer(lambda: verify(run, manager=Made.plugins))
    if verified is not None:
        for problem in verified.problems:
            check_sentence(problem)
        json.dumps(verified.document(), allow_nan=False)
    answer(lambda: probekit.resume(run, Made.plugins))


def drawn(own: Path, run: Path) -> None:
    answer(lambda: verify(run, recompute=True, manager=Made.plugins))
    if answer(lambda: RunDirectory.open(run)) is not None:
        answer(lambda: render(RunDirectory.open(run)))
    index = index_runs(own)
    show(index, 160)
    answer(lambda: write_index(index, own / "index.html"))
    answer(lambda: write_summary(index, own / "summary.md"))
    answer(lambda: save_figures(run, own / "figures", ["csv"]))
    for sides in ([run, Made.good], [Made.good, run]):
        comparison = answer(lambda sides=sides: compare(sides, own / f"comparison-{sides[0].name}.html"))
        if comparison is not None:
            json.dumps(comparison.document(), allow_nan=False)


TARGETS = [
    Target("run directories that are read", damages(), lambda chosen: on_damaged(chosen, read), few=25, many=5000),
    Target("run directories that are drawn", damages(), lambda chosen: on_damaged(chosen, drawn), few=6, many=1500),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_a_damaged_run_is_read_or_refused_with_a_sentence(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


def test_the_whole_run_is_read_in_every_way() -> None:
    """Near what is expected: undamaged it is refused by nothing but verify, whose hashes are of other pages."""
    with scratch() as own:
        damaged(Made.files, own / "run", [])
        assert set(read_run(own / "run").results) == {"pseudo-inverse", "null-space-walk"}
        assert compare([own / "run", Made.good], own / "c.html").analyses
        render(RunDirectory.open(own / "run"))
        assert "</script><b>" not in (own / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES[2:])
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_in_each_state(file: str, kind: str) -> None:
    check([("file", (file, kind))])


@pytest.mark.parametrize("name", CLIMBING)
def test_no_name_of_an_analysis_leads_out(name: str) -> None:
    check([("name", name)])


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({*JSON_FILES}))
@pytest.mark.parametrize("raw", [*RAW.values(), "", "[]", "{}", "null", '"', "\ufeff{}", "\0"])
def test_each_document_that_is_none(file: str, raw: str) -> None:
    with scratch() as own, limited_in_time():
        damaged(Made.files | {file: raw.encode()}, own / "run", [])
        with only_in(own):
            read(own, own / "run")


@pytest.mark.parametrize("file", [FILES[-1], "run.json", "timings.json", "config.toml"])
def test_nobody_waits_for_a_pipe(file: str) -> None:
    with scratch() as own, limited_in_time():
        damaged(Made.files, own / "run", [])
        (own / "run" / file).unlink()
        os.mkfifo(own / "run" / file)
        for read in (read_run, verify, index_runs, probekit.resume):
            answer(lambda read=read: read(own / "run"))  # type: ignore[misc]
        answer(lambda: compare([own / "run", Made.good], own / "c.html"))
        index_runs(own)


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_an_odd_text_in_every_place_of_a_manifest(text: str) -> None:
    document = json.loads(Made.files["run.json"])

    def put(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: put(value) for key, value in part.items()}
        return [put(value) for value in part] if isinstance(part, list) else text if isinstance(part, str) else part

    for key in document:
        with scratch() as own:
            changed = {**document, key: put(document[key])}
            damaged(Made.files | {"run.json": json.dumps(changed).encode()}, own / "run", [])
            with only_in(own):
                read(own, own / "run")


def test_a_page_for_the_tests_has_every_kind_of_block() -> None:
    assert isinstance(small_page(), Page)
    assert len({block["type"] for block in small_page().blocks}) == 14
