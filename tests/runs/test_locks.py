"""Two processes on one directory: the second says so, nothing is written twice, and what is left of a dead one is no
lock.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.errors import BusyError, UsageError
from probekit.files import LOCK, Lock
from probekit.plugins import Plugins
from probekit.runs import execute, resolve, resume
from probekit.runs.directory import RunDirectory
from probekit.runs.recording import record
from probekit.runs.studies import study

SLEEPER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Another process that has a lock until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLEEPER, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> str:
    return str(tiny_gpt2())


def values(model: str) -> dict[str, Any]:
    options = {"steps": 3, "restarts": 1, "sites": "block.0", "record_every": 3}
    return {"model": {"name": model}, "plugins": ["gradient-inverter"], "options": options}


class Listener:
    """Does something at the first sign of progress."""

    def __init__(self, action: Callable[[], None] = lambda: None) -> None:
        self._action: Callable[[], None] | None = action
        self.messages: list[str] = []

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        action, self._action = self._action, None
        if action:
            action()

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_run_that_is_under_way_can_be_neither_resumed_nor_begun_again(model: str, tmp_path: Path) -> None:
    place, plugins = tmp_path / "run", Plugins()
    resolved = resolve([("test", values(model))], plugins)
    sentences: list[str] = []

    def second() -> None:
        before = {path.name: path.stat().st_mtime_ns for path in place.rglob("*")}
        with pytest.raises(BusyError, match="at work on the run '") as ended:
            resume(place, plugins)
        sentences.append(str(ended.value))
        with pytest.raises(UsageError, match="exists and is not empty"):
            execute(resolved, plugins, place)
        assert {path.name: path.stat().st_mtime_ns for path in place.rglob("*")} == before

    assert execute(resolved, plugins, place, Listener(second)).status == "done"
    assert len(sentences) == 1
    assert not (place / LOCK).exists()


def test_two_that_begin_in_one_empty_folder_make_one_run(model: str, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    with Lock(place / LOCK, "it").held(), pytest.raises(BusyError, match="is at work on '"):
        RunDirectory.create(place, {"run.json": b"{}"})
    assert list(place.iterdir()) == []
    with RunDirectory.create(place, {"run.json": b"{}"}):
        assert sorted(path.name for path in place.iterdir()) == [LOCK, "run.json"]


def test_a_folder_that_another_makes_in_the_last_moment_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "run", Path.rename

    def late(self: Path, target: Path) -> Path:
        place.mkdir()
        (place / "run.json").write_text("of another")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(BusyError, match="Another process has begun a run in '"):
        RunDirectory.create(place, {"run.json": b"{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (place / "run.json").read_text() == "of another"


def test_two_runs_at_once_in_threads_are_not_begun(model: str, tmp_path: Path) -> None:
    """They would change each other's settings of torch and of the process."""
    sentences: list[str] = []

    def other() -> None:
        with pytest.raises(BusyError, match="Another run computes in this process") as ended:
            probekit.run(model, "pseudo-inverse", output=tmp_path / "second")
        sentences.append(str(ended.value))

    def in_a_thread() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    plugins = Plugins()
    assert execute(resolve([("test", values(model))], plugins), plugins, tmp_path / "run", Listener(in_a_thread))
    assert len(sentences) == 1
    assert not (tmp_path / "second").exists()


def test_the_lock_of_a_killed_process_is_none(
    model: str, tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    place = tmp_path / "run"
    with RunDirectory.create(place, {"run.json": b"{}"}):
        pass
    holder = hold(place / LOCK)
    with pytest.raises(BusyError):
        RunDirectory.open_to_write(place)
    holder.kill()
    holder.wait()
    assert (place / LOCK).is_file()
    with RunDirectory.open_to_write(place):
        pass
    assert not (place / LOCK).exists()


def test_a_recording_that_is_under_way_is_left_to_its_process(
    model: str, tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    place = tmp_path / "recording"
    place.mkdir()
    hold(place / LOCK)
    with pytest.raises(BusyError, match="at work on the recording '"):
        record(model, ["The sky"], output=place)
    assert [path.name for path in place.iterdir()] == [LOCK]


def test_a_recording_that_is_refused_leaves_no_folder(model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        record(model, ["The sky"], "wpe", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_another_process_is_at_is_left_to_it(
    model: str, tmp_path: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        f"""
        title = "Two seeds"
        [runs.descent]
        model = "{model}"
        plugins = ["gradient-inverter"]
        seeds = 2
        options = {{ sites = "block.0", steps = 2, restarts = 1, record_every = 2 }}
        """
    )
    folder = tmp_path / "study"
    (folder / "cells").mkdir(parents=True)
    key = study(file, tmp_path / "first").cells[0].key
    holder = hold(folder / "cells" / f".{key}.lock")
    listener = Listener()
    found = study(file, folder, listener=listener)
    assert (found.done, found.missing, found.failures) == (1, 1, {})
    assert any("another process is at work on it" in message for message in listener.messages)
    holder.kill()
    holder.wait()
    assert study(file, folder).done == 2
    assert [path.name for path in (folder / "cells").iterdir() if path.name.startswith(".")] == []
