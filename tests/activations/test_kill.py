"""Recordings that are killed: at most one shard is lost, and the same call ends with the same bytes.

Each is killed in a forked child of a process that has the model loaded already, at a moment that is named: the n-th
time that it touches a file, or after a while.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.activations import Recording
from tests.activations.recordings import PROMPTS, contents, record_ids

ROOT = Path(__file__).resolve().parents[2]
# One thread: the others of OpenMP's do not live on in a forked child, which would wait for them for ever.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# Reads one job a line: a folder, and moments to die at. It records once for each of them, in a child that is killed
# then, and a last time to the end. It answers how the last of the killed ended, and how many shards were there then,
# and were computed by the last.
SERVER = """
import gc, io, json, os, signal, sys, threading, time
from pathlib import Path
import probekit
from probekit.activations import Recording, writing
from tests.activations.recordings import record_ids

subject = probekit.load(sys.argv[1])
record_ids(subject, Path(sys.argv[2]) / "warm")
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def at_event(number):
    "Die before the n-th audit event of a file: one opened to be written, renamed, removed, or a folder made."
    left = number
    def hook(event, given):
        nonlocal left
        if event in ("os.rename", "os.remove", "os.mkdir") or (event == "open" and given[2] & os.O_CREAT):
            left -= 1
            if left == 0:
                die()
    sys.addaudithook(hook)

def in_write(number, share):
    "Die in the middle of the n-th thing that is written: a shard, or a line of the index."
    save, count = writing.save_file, 0
    def torn(tensors, place, metadata):
        nonlocal count
        count += 1
        save(tensors, place, metadata)
        if count == number:
            with open(place, "r+b") as file:
                file.truncate(int(place.stat().st_size * share))
            die()
    writing.save_file = torn

def in_save(number):
    "Die while safetensors writes the n-th shard, which it does to a file of its own making."
    save, count = writing.save_file, 0
    def torn(tensors, place, metadata):
        nonlocal count
        count += 1
        if count < number:
            return save(tensors, place, metadata)
        parent, there = os.getpid(), {*os.listdir(place.parent), place.name}
        def left():
            return not there.issuperset(os.listdir(place.parent))
        if os.fork() == 0:  # a thread would not run while it writes; looks until it has died with such a file left
            while True:
                if left():
                    os.kill(parent, signal.SIGSTOP)
                    time.sleep(0.005)
                    if left():
                        os.kill(parent, signal.SIGKILL)
                        os._exit(0)
                    os.kill(parent, signal.SIGCONT)
        while True:
            save(tensors, place, metadata)
    writing.save_file = torn

def in_line(number, share):
    opened, count = Path.open, 0
    def torn(self, mode="r", *given, **named):
        nonlocal count
        if self.name == "index.jsonl" and mode == "a":
            count += 1
            if count == number:
                class Torn(io.StringIO):
                    def write(self, text):
                        with opened(path, "a") as file:
                            file.write(text[:int(len(text) * share)])
                        die()
                path = self
                return Torn()
        return opened(self, mode, *given, **named)
    Path.open = torn

def after(seconds):
    threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True).start()

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

gc.freeze()
for line in sys.stdin:
    folder, moments = json.loads(line)
    folder = Path(folder)
    for kind, *given in moments:
        def killed():
            globals()[kind](*given)
            record_ids(subject, folder)
        ended = child(killed)
    whole = lambda: len(Recording(folder, unfinished=True).shards) if (folder / "recording.json").is_file() else 0
    there, files = whole(), len(list(folder.glob("shard-*"))) if folder.exists() else 0
    answer = folder.parent / "computed"
    answer.unlink(missing_ok=True)
    def again():
        computed, compute = [], writing._Shards.tensors
        writing._Shards.tensors = lambda self, shard: (computed.append(1), compute(self, shard))[1]
        record_ids(subject, folder)
        answer.write_text(str(len(computed)))
    finished = child(again)
    computed = int(answer.read_text()) if answer.exists() else -1
    found = {"ended": ended, "there": there, "files": files, "finished": finished, "computed": computed}
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def killed(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`killed(folder, [kind, …], …)`: record into it, die, once for each moment; record again; what came of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tiny_gpt2()), str(tmp_path_factory.mktemp("server"))],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def kill(folder: Path, *moments: list[Any]) -> dict[str, int]:
        stdin.write(json.dumps([str(folder), moments]) + "\n")
        stdin.flush()
        answer: dict[str, int] = json.loads(stdout.readline())
        return answer

    yield kill
    stdin.close()
    process.wait(timeout=60)
    stdout.close()


def check(recorded: Recording, folder: Path, answer: dict[str, int], dies: bool = True) -> None:
    """At most the shard in work was lost, and the end is that of a recording that nobody killed."""
    assert answer["ended"] == -signal.SIGKILL or (not dies and answer["ended"] == 0)
    assert answer["finished"] == 0
    assert answer["files"] - answer["there"] in (0, 1), "at most one shard is there without its line"
    assert answer["computed"] == len(recorded.shards) - answer["there"], "no finished shard is computed again"
    assert contents(folder) == contents(recorded.path)


def events(recorded: Recording) -> int:
    """How many audit events of files there are in a whole recording, or a few more."""
    return 8 + 5 * len(recorded.shards)


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 21])
def test_killed_when_it_touches_a_file_for_the_nth_time(
    recorded: Recording, killed: Any, tmp_path: Path, moment: int
) -> None:
    check(recorded, tmp_path / "r", killed(tmp_path / "r", ["at_event", moment]))


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6, 1.0])
def test_killed_while_it_writes_a_shard(
    recorded: Recording, killed: Any, tmp_path: Path, number: int, share: float
) -> None:
    answer = killed(tmp_path / "r", ["in_write", number, share])
    check(recorded, tmp_path / "r", answer)
    assert answer["there"] == number - 1


@pytest.mark.parametrize("number", [1, 3])
def test_killed_while_safetensors_writes_to_a_file_of_its_own(
    recorded: Recording, killed: Any, tmp_path: Path, number: int
) -> None:
    answer = killed(tmp_path / "r", ["in_save", number])
    check(recorded, tmp_path / "r", answer)
    assert answer["there"] == number - 1


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.995])
def test_killed_between_a_shard_and_its_line_or_within_the_line(
    recorded: Recording, killed: Any, tmp_path: Path, number: int, share: float
) -> None:
    answer = killed(tmp_path / "r", ["in_line", number, share])
    check(recorded, tmp_path / "r", answer)
    assert answer["files"] == number
    assert answer["there"] == number - 1


@pytest.mark.parametrize("seed", range(4))
def test_killed_after_a_while(recorded: Recording, killed: Any, tmp_path: Path, seed: int) -> None:
    answer = killed(tmp_path / "r", ["after", random.Random(seed).uniform(0.0, 0.08)])
    check(recorded, tmp_path / "r", answer, dies=False)


@pytest.mark.slow
def test_killed_at_a_hundred_moments(recorded: Recording, killed: Any, tmp_path: Path) -> None:
    draw = random.Random(0)
    died = 0
    for moment in range(100):
        folder = tmp_path / str(moment) / "r"
        folder.parent.mkdir()
        if moment % 2:
            answer = killed(folder, ["after", draw.uniform(0.0, 0.15)])
        else:
            answer = killed(folder, ["at_event", draw.randint(1, events(recorded))])
        check(recorded, folder, answer, dies=False)
        died += answer["ended"] != 0
    assert died > 50


def test_killed_again_and_again_it_still_comes_to_its_end(recorded: Recording, killed: Any, tmp_path: Path) -> None:
    draw = random.Random(1)
    moments: list[list[Any]] = [["at_event", draw.randint(2, 9)] for _ in range(5)]
    moments += [["in_write", 1, 0.5], ["in_line", 1, 0.5], ["in_line", 1, 0.0]]
    check(recorded, tmp_path / "r", killed(tmp_path / "r", *moments))


# --- the command line ------------------------------------------------------------------------------------------------


def prompts_file(folder: Path) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(ids) + "\n" for ids in PROMPTS * 10), encoding="utf-8")
    return file


def command(model: Path, file: Path, output: Path) -> list[str]:
    small = ["--shard-size", "4000", "--batch-tokens", "10", "--sites", "blocks"]
    return ["record", "--model", str(model), "--prompts", str(file), "--output", str(output), *small]


@pytest.mark.parametrize("kind", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=str)
def test_the_same_command_goes_on(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, probekit_cli: Any, kind: signal.Signals
) -> None:
    words = command(tiny_gpt2(), prompts_file(tmp_path), tmp_path / "r")
    process = subprocess.Popen(
        [sys.executable, "-m", "probekit", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "r" / "shard-00003.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL), err
    if kind == signal.SIGINT:
        assert "Traceback" not in err
        assert "the same command goes on with it" in err
        assert not list((tmp_path / "r").glob(".*"))
    begun = Recording(tmp_path / "r", unfinished=True)
    assert len(begun.shards) >= 3
    assert not begun.complete
    assert probekit_cli(*words).code == 0
    words[words.index("--output") + 1] = str(tmp_path / "whole")
    assert probekit_cli(*words).code == 0
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_what_the_server_calls_is_what_the_tests_call(
    subject: probekit.Subject, recorded: Recording, tmp_path: Path
) -> None:
    record_ids(subject, tmp_path / "r")
    assert contents(tmp_path / "r") == contents(recorded.path)
