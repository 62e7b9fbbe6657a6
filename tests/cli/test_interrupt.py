"""Ctrl-C, analyses that fail and analyses with bugs: what was found is kept, and what was not is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Analyses that end in every way. `endless` goes on until it is interrupted.
SAMPLES = """
import time
import probekit

class Sound(probekit.Analysis[probekit.Options]):
    name = "sound"
    def run(self, subject, prompts):
        return probekit.Result(finding="It is sound.", metrics={"tokens": len(prompts[0].tokens)})
    def report(self, result, page):
        page.prose("Nothing was wrong.")

class Second(Sound):
    name = "second"

class Endless(Sound):
    name = "endless"
    def run(self, subject, prompts):
        with self.context.progress("endless", 10_000_000) as progress:
            while True:
                time.sleep(0.01)
                progress.step()

class Stubborn(Sound):
    name = "stubborn"
    def run(self, subject, prompts):
        self.context.log("It does not listen.")
        time.sleep(60)

class Unable(Sound):
    name = "unable"
    def run(self, subject, prompts):
        subject.capture(prompts[0].input_ids, ["block.0"])
        raise probekit.AnalysisError("The moon is in the way.")

class Buggy(Sound):
    name = "buggy"
    def run(self, subject, prompts):
        return len(5) + \\
            1

class Verbose(Sound):
    name = "verbose"
    def run(self, subject, prompts):
        raise ValueError("first\\nsecond\\n  third")

class Leaving(Sound):
    name = "leaving"
    def run(self, subject, prompts):
        raise SystemExit(0)

class Hungry(Sound):
    name = "hungry"
    def run(self, subject, prompts):
        raise MemoryError

class Empty(Sound):
    name = "empty-handed"
    def run(self, subject, prompts):
        return None

class Broken(Sound):
    name = "not-finite"
    def run(self, subject, prompts):
        return probekit.Result(metrics={"loss": float("nan")})

class Infinite(Sound):
    name = "infinite-tensor"
    def run(self, subject, prompts):
        import torch
        return probekit.Result(tensors={"loss": torch.tensor([1.0, float("inf")])})

class Artless(Sound):
    name = "artless"
    def report(self, result, page):
        raise LookupError("no pencil")

class Unfinished(probekit.Analysis[probekit.Options]):
    name = "unfinished"

@probekit.hookimpl
def probekit_analyses():
    return [Sound, Second, Endless, Stubborn, Unable, Buggy, Verbose, Leaving, Hungry, Empty, Broken, Infinite, Artless,
            Unfinished]
"""


@pytest.fixture
def samples(install_plugin: Any) -> Path:
    folder: Path = install_plugin("samples", SAMPLES)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- failures --------------------------------------------------------------------------------------------------------

FAILURES = {
    "unable": "The moon is in the way.",
    "buggy": "TypeError: object of type 'int' has no len()",
    "verbose": "ValueError: first second third",
    "leaving": "SystemExit",
    "hungry": "Out of memory: the weights ",
    "empty-handed": "The analysis returned a NoneType; expected a probekit.Result.",
    "not-finite": "The metric 'loss' is nan",
    "infinite-tensor": "The tensor 'loss' holds NaN or infinity",
    "artless": "LookupError: no pencil",
    "unfinished": "NotImplementedError: Unfinished does not implement run()",
}
BUGS = {"buggy", "verbose", "leaving", "artless", "hungry", "unfinished"}


@pytest.mark.parametrize("name", FAILURES)
def test_an_analysis_that_fails_is_said_everywhere_and_the_others_are_done(
    name: str, probekit_cli: Any, samples: Path, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    plugins = [word for plugin in ("sound", name, "second") for word in ("--plugin", plugin)]
    ended = probekit_cli("run", "--model", tiny_gpt2(), *plugins, "--output", output, "--json")
    assert ended.code == 1, ended.err
    assert ended.sentence.startswith(f"{name}: {FAILURES[name]}")
    document = json.loads(ended.out)
    assert document["status"] == "failed"
    assert {key: entry["status"] for key, entry in document["analyses"].items()} == {
        "sound": "done",
        name: "failed",
        "second": "done",
    }
    assert document["analyses"][name]["error"].startswith(FAILURES[name])
    manifest = read(output / "run.json")
    assert manifest["status"] == "failed"
    assert [entry["status"] for entry in manifest["analyses"].values()] == ["done", "failed", "done"]
    assert manifest["analyses"][name]["error"] == document["analyses"][name]["error"]
    for done in ("sound", "second"):
        assert (output / "analyses" / done / "DONE").is_file()
    assert not (output / "analyses" / name / "DONE").exists()
    shown = (output / "report.html").read_text(encoding="utf-8")
    assert "Nothing was wrong." in shown
    assert FAILURES[name].split("'")[0] in shown
    assert FAILURES[name] in (output / "summary.md").read_text(encoding="utf-8")
    traceback = output / "analyses" / name / "traceback.txt"
    assert traceback.is_file() == (name in BUGS)
    if name == "buggy":
        assert "return len(5)" in traceback.read_text(encoding="utf-8")
    if name in BUGS:
        assert "traceback.txt" in ended.err


def test_several_failures_are_all_named_in_the_one_sentence(
    probekit_cli: Any, samples: Path, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    ended = probekit_cli(
        "run", "--model", tiny_gpt2(), "--plugin", "unable", "--plugin", "not-finite", "--output", tmp_path / "run"
    )
    assert ended.code == 1
    assert "unable: The moon" in ended.sentence
    assert "not-finite: The metric" in ended.sentence


# --- interrupts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(samples: Path, tiny_gpt2: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`started("sound", "endless")`: a process that runs these analyses."""
    processes: list[subprocess.Popen[str]] = []

    def start(*plugins: str, output: Path = tmp_path / "run", deaf: bool = False) -> subprocess.Popen[str]:
        words = [word for plugin in plugins for word in ("--plugin", plugin)]
        # As a shell begins what is in the background of a script.
        deafened = ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable] if deaf else [sys.executable]
        process = subprocess.Popen(
            [*deafened, "-m", "probekit", "run", "--model", str(tiny_gpt2()), *words, "--output", str(output)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{samples}{os.pathsep}{ROOT}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "deaf"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM where Ctrl-C is ignored"],
)
def test_an_interrupted_run_keeps_what_is_finished_and_draws_its_report(
    number: signal.Signals, deaf: bool, started: Callable[..., Any], tmp_path: Path, probekit_cli: Any
) -> None:
    run = tmp_path / "run"
    process = started("sound", "endless", "second", deaf=deaf)
    wait_until((run / "analyses/sound/DONE").is_file, process)
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert "Interrupted" in err
    manifest = read(run / "run.json")
    assert manifest["status"] == "interrupted"
    assert [entry["status"] for entry in manifest["analyses"].values()] == ["done", "interrupted", "waiting"]
    assert read(run / "analyses/sound/result.json")["metrics"]["tokens"] > 0
    assert not (run / "analyses/second").exists()
    assert "Nothing was wrong." in (run / "report.html").read_text(encoding="utf-8")
    assert "interrupted" in (run / "summary.md").read_text(encoding="utf-8").lower()
    assert list(run.rglob("*.tmp")) == []
    assert probekit_cli("report", run).code == 0


def test_an_analysis_that_does_not_listen_is_ended_by_a_second_interrupt(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started("sound", "stubborn")
    wait_until(
        lambda: run.is_dir() and "does not listen" in (run / "events.jsonl").read_text(encoding="utf-8"), process
    )
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert read(run / "run.json")["status"] == "interrupted"
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_model_loads_leaves_no_directory(
    number: signal.Signals, started: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "deep" / "run"
    process = started("sound", output=run)
    wait_until(run.is_dir, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert not run.parent.exists()
