"""The journal on real runs of a tiny model: those that end well, badly, or never."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import probekit_journal
import pytest
from click.testing import CliRunner, Result
from probekit_journal.command import journal
from probekit_journal.entries import read_journal
from probekit_journal.lines import journal_path

import probekit


class WordsOptions(probekit.Options):
    """What the analysis does."""

    way: str = "find"


class Words(probekit.Analysis[WordsOptions]):
    """Counts tokens, or breaks."""

    name = "words"

    def run(self, subject: probekit.Subject, prompts: Sequence[probekit.Prompt]) -> probekit.Result:
        if self.options.way == "break":
            raise probekit.AnalysisError("The words are gone.")
        if self.options.way == "interrupt":
            raise KeyboardInterrupt
        return probekit.Result(finding=f"{prompts[0].input_ids.numel()} tokens, \x1b[31mred\x1b[0m.")

    def report(self, result: probekit.Result, page: probekit.Page) -> None:
        page.prose(result.finding)


class Observed:
    """The plugin's hooks beside an analysis."""

    probekit_run_started = staticmethod(probekit_journal.probekit_run_started)
    probekit_run_finished = staticmethod(probekit_journal.probekit_run_finished)

    @staticmethod
    @probekit.hookimpl
    def probekit_analyses() -> list[type[Words]]:
        return [Words]


class Listening:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        """Nothing to keep."""

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("model") / "tiny-gpt2"
    with torch.random.fork_rng(devices=[]):
        config = GPT2Config(
            n_layer=1, n_embd=8, n_head=1, n_positions=16, vocab_size=16, bos_token_id=0, eos_token_id=0
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The journal of each test."""
    path = tmp_path / "state" / "journal.jsonl"
    monkeypatch.setenv("PROBEKIT_JOURNAL", str(path))
    return path


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., tuple[probekit.Run, list[str]]]:
    """`run("name", way="break")`: the run in a folder of that name, and what it said."""

    def make(
        name: str, model: Path = model, input_ids: Sequence[Sequence[int]] = ((1, 2, 3),), **options: str
    ) -> tuple[probekit.Run, list[str]]:
        plugins = probekit.Plugins(points=[])
        assert plugins.register(Observed()).status == "loaded"
        listening = Listening()
        made = probekit.run(
            model, "words", input_ids=input_ids, options=options, output=tmp_path / name, manager=plugins,
            listener=listening,
        )  # fmt: skip
        return made, listening.messages

    return make


def listed(*words: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(journal, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    runs: list[dict[str, Any]] = json.loads(result.stdout)["runs"]
    return runs


def printed(*words: str) -> Result:
    return CliRunner().invoke(journal, words, catch_exceptions=False)


def test_a_run_has_a_line_when_it_begins_and_one_when_it_ends(
    run: Callable[..., Any], file: Path, model: Path, tmp_path: Path
) -> None:
    _, messages = run("good")
    assert messages == []
    started, finished = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    known = {"directory": str(tmp_path / "good"), "model": str(model), "analyses": ["words"], "process": os.getpid()}
    assert known.items() <= started.items()
    assert known.items() <= finished.items()
    assert not {"status", "resumed"} & set(started)
    assert finished["status"] == "done"
    assert finished["findings"] == {"words": "3 tokens, \x1b[31mred\x1b[0m."}
    assert 0 <= finished["seconds"] < 60


def test_runs_are_listed_with_what_they_found_and_what_failed(run: Callable[..., Any], tmp_path: Path) -> None:
    run("good")
    run("bad", way="break")
    good, bad = listed()
    assert (good["status"], good["findings"], good["failures"]) == (
        "done",
        {"words": "3 tokens, \x1b[31mred\x1b[0m."},
        {},
    )
    assert (bad["status"], bad["findings"], bad["failures"]) == ("failed", {}, {"words": "The words are gone."})
    first, second = printed().stdout.strip().split("\n\n")
    assert "  done  " in first.splitlines()[0]
    assert first.splitlines()[1:] == [f"    {tmp_path / 'good'}", "    words: 3 tokens, ·[31mred·[0m."]
    assert second.splitlines()[1:] == [f"    {tmp_path / 'bad'}", "    words failed: The words are gone."]


def test_the_list_can_be_narrowed(run: Callable[..., Any]) -> None:
    for name, way in (("a", "find"), ("b", "break"), ("c", "find")):
        run(name, way=way)
    folders = [
        [Path(entry["directory"]).name for entry in listed(*words)]
        for words in (
            ("--status", "done"), ("--last", "2"), ("--status", "done", "--last", "1"), ("--model", "TINY"),
            ("--model", "other"), ("--analysis", "words"), ("--analysis", "word"),
        )
    ]  # fmt: skip
    assert folders == [["a", "c"], ["b", "c"], ["c"], ["a", "b", "c"], [], ["a", "b", "c"], []]
    nothing = printed("--model", "other")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr.startswith("No run of the 3 in ")


def test_a_run_that_has_no_model_is_abandoned_and_its_sentence_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "no-model").mkdir()
    with pytest.raises(probekit.ModelError) as raised:
        run("never", model=tmp_path / "no-model")
    (entry,) = listed()
    assert (entry["status"], entry["remark"], entry["findings"]) == ("abandoned", "", {})
    assert entry["failures"] == {"run": str(raised.value)}
    assert not Path(entry["directory"]).exists()
    assert printed("--status", "abandoned").stdout.splitlines()[1:3] == [
        f"    {tmp_path / 'never'}",
        f"    {raised.value}",
    ]
    run("never")  # with a model that does
    assert [entry["status"] for entry in listed()] == ["abandoned", "done"]


def test_a_run_that_is_killed_is_unfinished_and_one_that_is_at_work_is_running(tmp_path: Path) -> None:
    configuration = {"model": {"name": "gpt2"}, "plugins": ["words"]}
    code = (
        "import os, pathlib, sys, probekit_journal\n"
        f"probekit_journal.probekit_run_started(pathlib.Path(sys.argv[1]), {configuration}, False)\n"
        "os.kill(os.getpid(), 9)"
    )
    (tmp_path / "killed").mkdir()
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], timeout=120, check=False)
    assert died.returncode == -9
    (tmp_path / "at-work").mkdir()
    probekit_journal.probekit_run_started(tmp_path / "at-work", configuration, False)
    killed, at_work = listed()
    assert (killed["status"], killed["remark"]) == ("unfinished", "`probekit run --resume` goes on with it")
    assert (at_work["status"], at_work["remark"]) == ("running", "")
    assert printed("--status", "unfinished").stdout.count("--resume") == 1

    (tmp_path / "killed").rmdir()
    assert [(entry["status"], entry["remark"]) for entry in listed()] == [
        ("unfinished", "its directory is gone"),
        ("running", ""),
    ]
    probekit_journal.probekit_run_started(tmp_path / "killed", configuration, True)
    assert listed()[0]["remark"] == "begun again later"


def test_a_run_that_is_resumed_is_marked_and_has_an_entry_for_each_time_it_went_on(
    run: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("long", way="interrupt")
    plugins = probekit.Plugins(points=[])
    plugins.register(Observed())
    with pytest.raises(KeyboardInterrupt):
        probekit.resume(tmp_path / "long", plugins)
    elsewhere = model.rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(probekit.ModelError, match="There is no folder"):
            probekit.resume(tmp_path / "long", plugins)
    finally:
        elsewhere.rename(model)
    assert [(entry["status"], entry["resumed"]) for entry in listed()] == [
        ("interrupted", False),
        ("interrupted", True),
        ("abandoned", True),
    ]
    first, *later = printed().stdout.strip().split("\n\n")
    assert not first.splitlines()[0].endswith("(resumed)")
    assert all(entry.splitlines()[0].endswith("  words  (resumed)") for entry in later)


def test_a_prompt_that_the_model_does_not_take_abandons_a_run_too(run: Callable[..., Any]) -> None:
    with pytest.raises(probekit.UsageError, match="outside the vocabulary"):
        run("prompts", input_ids=[[999]])
    (entry,) = listed()
    assert entry["status"] == "abandoned"
    assert "outside the vocabulary" in entry["failures"]["run"]


def test_damaged_lines_are_counted_and_the_rest_is_shown(run: Callable[..., Any], file: Path) -> None:
    run("first")
    with file.open("ab") as stream:
        stream.write(b'\xff\xfe\n{"event": "started"}\n[]\n{"event": "fini')  # the last one was torn
    run("second")
    result = printed("--json")
    assert [Path(entry["directory"]).name for entry in json.loads(result.stdout)["runs"]] == ["first", "second"]
    assert json.loads(result.stdout)["damaged_lines"] == 4
    assert result.stderr.startswith("4 lines of ")
    assert "left out" in result.stderr


def test_many_processes_write_at_once_and_no_line_is_lost(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from probekit_journal.lines import append, line_of\n"
        "given = {'model': {'name': 'm' * 5000}, 'plugins': ['words']}\n"
        "for number in range(100): append(line_of('started', Path(f'/{sys.argv[1]}/{number}'), given))"
    )
    with ThreadPoolExecutor(4) as pool:
        ends = list(
            pool.map(
                lambda name: subprocess.run([sys.executable, "-c", code, str(name)], timeout=120).returncode, "abcd"
            )
        )
    assert ends == [0] * 4
    entries, damaged = read_journal(file)
    assert damaged == 0
    assert {entry.line.directory for entry in entries} == {f"/{name}/{n}" for name in "abcd" for n in range(100)}


def test_a_journal_that_cannot_be_written_leaves_the_run_alone(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROBEKIT_JOURNAL", str(tmp_path / "file" / "journal.jsonl"))
    made, messages = run("good")
    assert made.status == "done"
    assert len(messages) == 2
    for message in messages:
        assert "could not be written: " in message
        assert "PROBEKIT_JOURNAL" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_a_sentence(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBEKIT_JOURNAL", "/dev/full")
    _, messages = run("good")
    assert "No space left on device" in messages[0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "There is no journal"), (b"\x00\x01 no journal\n", "is no journal"), ("folder", "cannot be read")],
)
def test_what_is_no_journal_is_refused_in_a_sentence(content: object, sentence: str, file: Path) -> None:
    file.parent.mkdir()
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(probekit.UsageError, match=sentence) as refused:
        printed()
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)


def test_an_empty_journal_is_no_error(file: Path) -> None:
    file.parent.mkdir()
    file.touch()
    assert printed().stderr == "No run yet.\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PROBEKIT_JOURNAL": "~/mine.jsonl"}, "/home/me/mine.jsonl"),
        ({"XDG_STATE_HOME": "/state"}, "/state/probekit/journal.jsonl"),
        ({"XDG_STATE_HOME": "not/absolute"}, "/home/me/.local/state/probekit/journal.jsonl"),
        ({"PROBEKIT_JOURNAL": "", "XDG_STATE_HOME": ""}, "/home/me/.local/state/probekit/journal.jsonl"),
    ],
)
def test_the_file_is_where_the_environment_says(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROBEKIT_JOURNAL", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert journal_path() == Path(expected)


def test_a_directory_whose_name_is_no_utf_8_is_written_down(file: Path) -> None:
    from probekit_journal.lines import append, line_of

    append(line_of("started", Path(os.fsdecode(b"/runs/\xff")), {"model": {"name": "m"}, "plugins": ["words"]}))
    assert read_journal(file)[0][0].line.directory == "/runs/\\udcff"


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import probekit_journal, sys; sys.exit(bool({'torch', 'transformers', 'click'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
