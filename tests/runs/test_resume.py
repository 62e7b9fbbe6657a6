"""Runs that survive: interrupted or killed, resumed, and byte for byte what an uninterrupted run writes."""

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

from probekit.errors import UsageError
from probekit.plugins import Plugins
from probekit.runs import Run, execute, resolve, resume
from tests.runs.folders import assert_same, contents

OPTIONS = {"steps": 40, "restarts": 3, "sites": "blocks", "record_every": 7, "rows_at_once": 4}
# Fewer steps, where each optimiser is interrupted at several moments.
BRIEF = {"steps": 16, "record_every": 3}
OUTPUT = Path("run")  # relative, so that no two runs differ in their paths


def configured(model: Path, **options: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(model)},
        "plugins": ["gradient-inverter", "pseudo-inverse"],
        "prompts": ["The sky is blue.", "Once upon a time"],
        # One site after another: that several in one pass go on to the same bits has tests of its own.
        "options": {"gradient-inverter": OPTIONS | {"share_pass": "no"} | options},
    }


def begin(values: dict[str, Any], listener: Any = None, save_every: float = 0.0) -> Run:
    plugins = Plugins()
    return execute(resolve([("test", values)], plugins), plugins, OUTPUT, listener, (), save_every)


class At:
    """A listener that does something at the n-th sign of progress."""

    def __init__(self, moment: int, action: Callable[[], None]) -> None:
        self._moment, self._action = moment, action
        self.seen = 0
        self.messages: list[str] = []

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self.seen += 1
        if self.seen == self._moment:
            self._action()

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(
    scope="module",
    params=["adam", "descent", "lbfgs", "adam with dropout", "lbfgs with dropout"],
    ids=lambda name: name,
)
def descent(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The optimiser, and whether masks are drawn at each step."""
    optimizer, _, dropout = str(request.param).partition(" with ")
    return {"optimizer": optimizer, "dropout": bool(dropout)}


@pytest.fixture(scope="module")
def whole(model: Path, descent: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        begin(configured(model, **BRIEF, **descent), save_every=1000.0)
    return folder / OUTPUT


@pytest.fixture(autouse=True)
def every_step_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)


# The first step, the last of the first batch, and one within the first batch of the second and of the third site.
@pytest.mark.parametrize("moment", [1, 16, 38, 72])
def test_one_interrupt_finishes_the_step_saves_and_says_how_to_resume(
    model: Path, descent: dict[str, Any], whole: Path, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = At(moment, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        begin(configured(model, **BRIEF, **descent), listener, save_every=1000.0)
    assert listener.seen == moment, "the run went no further than the step that it was in"
    assert "probekit run --resume run" in listener.messages[-1]
    manifest = json.loads((OUTPUT / "run.json").read_text())
    assert manifest["status"] == "interrupted"
    assert manifest["analyses"]["gradient-inverter"]["status"] == "interrupted"
    assert (OUTPUT / "report.html").is_file()

    assert resume(OUTPUT, Plugins()).status == "done"
    assert_same(OUTPUT, whole)


def test_a_resumed_run_does_not_repeat_what_was_done(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counted = At(0, lambda: None)
    begin(configured(model), counted)
    steps = counted.seen
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    first = At(100, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        begin(configured(model), first)
    second = At(0, lambda: None)
    resume(OUTPUT, Plugins(), second)
    assert first.seen + second.seen == steps


def test_two_interrupts_stop_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second does not wait for the step's end: it comes out of the very call that got it."""
    monkeypatch.chdir(tmp_path)
    survived = []

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        survived.append("the second interrupt")

    with pytest.raises(KeyboardInterrupt):
        begin(configured(model), At(5, twice))
    assert survived == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert resume(OUTPUT, Plugins()).status == "done"


def test_a_run_that_is_done_has_nothing_to_resume(whole: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        resume(whole, Plugins())


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run directory"):
        resume(tmp_path, Plugins())


def interrupted(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(KeyboardInterrupt):
        begin(configured(model), At(3, lambda: signal.raise_signal(signal.SIGINT)))


def test_other_packages_are_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(model, tmp_path, monkeypatch)
    manifest = json.loads((OUTPUT / "run.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (OUTPUT / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"torch \(1.0 then, "):
        resume(OUTPUT, Plugins())


def test_other_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Callable[..., Path]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_gpt2().iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    interrupted(model, tmp_path, monkeypatch)
    for file in tiny_gpt2(seed=1).iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match="not the one that the run was begun with"):
        resume(OUTPUT, Plugins())
    assert (OUTPUT / "run.json").is_file(), "a refused resume throws nothing away"


def test_a_failed_analysis_is_tried_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from probekit_plugins.pseudo_inverse import PseudoInverse

    with monkeypatch.context() as patch:
        patch.setattr(PseudoInverse, "run", lambda *_: 1 / 0)
        assert begin(configured(model)).status == "failed"
    assert (OUTPUT / "analyses/pseudo-inverse/traceback.txt").is_file()
    assert resume(OUTPUT, Plugins()).status == "done"


def test_finished_runs_keep_no_state(whole: Path) -> None:
    assert not [name for name in contents(whole) if "state" in name or name.endswith(".tmp")]


def killed_at(moments: list[float], model: Path, folder: Path, whole: Path) -> int:
    """Start the command line, kill it with SIGKILL after each time in turn, resuming; then let it end and compare.

    Returns how often the kill came before the run's end.
    """
    folder.mkdir()
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    options = [part for key, value in OPTIONS.items() for part in ("-o", f"gradient-inverter.{key}={value}")]
    start = ["run", "--model", str(model), "--plugin", "gradient-inverter", "--plugin", "pseudo-inverse", *options]
    start += ["--prompt", "The sky is blue.", "--prompt", "Once upon a time", "--output", str(OUTPUT)]
    resumed = ["run", "--resume", str(OUTPUT)]
    kills = 0
    for moment in [*moments, None]:
        begun = (folder / OUTPUT / "run.json").is_file()
        if begun and json.loads((folder / OUTPUT / "run.json").read_text())["status"] == "done":
            break
        command = [sys.executable, "-m", "probekit", *(resumed if begun else start), "--save-every", "0.02"]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if moment is None:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            break
        if wait_for_run(folder, process, moment):
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert_same_but_argv(folder / OUTPUT, whole)
    return kills


def wait_for_run(folder: Path, process: subprocess.Popen[str], moment: float) -> bool:
    """Wait until the run directory is there, then for a moment; False if the process ended before."""
    while process.poll() is None and not (folder / OUTPUT).exists():
        time.sleep(0.005)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        return True
    return False


def assert_same_but_argv(found: Path, expected: Path) -> None:
    one, other = contents(found), contents(expected)
    first, second = json.loads(one.pop("run.json")), json.loads(other.pop("run.json"))
    for manifest in (first, second):
        manifest.pop("argv")
        manifest.pop("sources")
    assert first == second
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name] and name != "config.toml"] == []


def whole_by_command_line(model: Path, folder: Path) -> Path:
    assert killed_at([], model, folder, folder / OUTPUT) == 0
    return folder / OUTPUT


# With dropout, a run saves all that one without it saves, and the state of its masks.
@pytest.mark.parametrize("dropout", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_twice_and_resumed(dropout: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS, "dropout", dropout)
    whole = whole_by_command_line(model, tmp_path / "whole")
    assert killed_at([0.3, 1.2], model, tmp_path / "killed", whole) >= 1


@pytest.mark.slow
def test_killed_at_twenty_random_moments(model: Path, tmp_path: Path) -> None:
    """`kill -9` at 20 random moments, each in a run of its own: 20 byte-equal resumes."""
    began = time.monotonic()
    whole = whole_by_command_line(model, tmp_path / "whole")
    duration = time.monotonic() - began
    moments = random.Random(0)
    kills = sum(
        killed_at([moments.uniform(0, duration)], model, tmp_path / f"killed-{number}", whole) for number in range(20)
    )
    assert kills >= 10, "most of the kills came before the run's end"
