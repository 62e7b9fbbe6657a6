"""Killed, interrupted or asked to end at any moment: every analysis, a recording, trainings and a study go on, and end
with the same bytes.

Moments are random, and aimed: just before each change of the file system, in turn.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kill.cases import NAMES, case
from tests.kill.harness import RUN, SIGNALS, Forks, assert_same, next_of_run
from tests.runs.test_resume import assert_same_but_argv

# Of each signal at each case, so many that came before the end.
EACH = 5
QUICK = "inverter, strong"


def test_there_are_a_hundred_moments_of_each_signal() -> None:
    assert EACH * len(NAMES) >= 100


@pytest.mark.parametrize("sent", SIGNALS, ids=lambda sent: sent.name)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_at_random_moments(
    name: str, sent: signal.Signals, forks: Forks, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    killed_at_random(name, sent, EACH, forks, tiny_gpt2(), tmp_path)


@pytest.mark.parametrize("sent", SIGNALS, ids=lambda sent: sent.name)
def test_an_inverter_at_random_moments(
    sent: signal.Signals, forks: Forks, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    killed_at_random(QUICK, sent, 2, forks, tiny_gpt2(), tmp_path)


def killed_at_random(name: str, sent: signal.Signals, wanted: int, forks: Forks, model: Path, folder: Path) -> None:
    """Until so many came before the end; several in a row now and then. None is tried more than a few times."""
    moments = random.Random(f"{name}/{sent.name}")
    command = case(name, model)
    whole = command.whole(forks, folder)
    came = 0
    for _ in range(4 * wanted):
        in_a_row = moments.choice([1, 1, 1, 2, 3])
        deaths = [{"signals": [(moments.uniform(0.0, command.seconds), int(sent))]} for _ in range(in_a_row)]
        came += command.killed(forks, whole, deaths)
        if came >= wanted:
            print(f"{name}: {came} of {sent.name}")
            return
    raise AssertionError(f"only {came} of {wanted} came before the end")


# --- before each change of the file system ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("recording", "study"))]
)
def test_before_some_changes_of_the_file_system(
    name: str, forks: Forks, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    command = case(name, tiny_gpt2(), counted=True)
    whole = command.whole(forks, tmp_path)
    chosen = random.Random(name).sample(range(1, command.changes), 7)
    assert sum(command.killed(forks, whole, [{"die_at": number, "torn": True}]) for number in chosen) == len(chosen)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [QUICK, "recording", "training of the embedded model"])
def test_before_every_change_of_the_file_system(
    name: str, forks: Forks, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    command = case(name, tiny_gpt2(), counted=True)
    whole = command.whole(forks, tmp_path)
    numbers = range(1, command.changes + 1)
    came = sum(command.killed(forks, whole, [{"die_at": number, "torn": True}]) for number in numbers)
    assert came == len(numbers)


# --- a process from its start -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_imports_and_loads(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    arguments = case(QUICK, tiny_gpt2()).arguments

    def started(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "probekit", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    whole = tmp_path / "whole"
    whole.mkdir()
    began = time.monotonic()
    assert started(whole, list(arguments)).wait(200) == 0
    duration = time.monotonic() - began
    moments, came = random.Random(0), 0
    for number in range(6):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        for sent in (SIGNALS[number % 3], None):
            words = next_of_run(folder, arguments)
            if words is None:
                break
            process = started(folder, words)
            if sent is None:
                assert process.wait(200) == 0
                break
            try:
                process.wait(moments.uniform(0, duration))
            except subprocess.TimeoutExpired:
                process.send_signal(sent)
                came += process.wait(200) != 0
        assert_same(folder, whole, f"killed-{number}")
    assert came >= 3


# --- a pair of runs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_pair_with_trained_and_random_weights_goes_on_run_by_run(
    share: float, forks: Forks, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    """As its last message says: the run that was interrupted is resumed, and then come the other and the comparison."""
    start = [word for word in case(QUICK, tiny_gpt2()).arguments if word not in ("--output", RUN)]
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    both = [*start, "--output", "pair"]
    ended = forks.call(folders[0], [*both, "--compare-random"])
    assert ended.code == 0, ended.err
    killed = forks.call(folders[1], [*both, "--compare-random"], [(share * ended.seconds, int(signal.SIGKILL))])
    assert killed.code == -9
    for name, weights in (("trained", []), ("random", ["--weights", "random"])):
        place = folders[1] / "pair" / name
        words = [*start, *weights, "--output", f"pair/{name}"]
        if (place / "run.json").is_file():
            status = json.loads((place / "run.json").read_text(encoding="utf-8"))["status"]
            words = [] if status == "done" else ["run", "--resume", f"pair/{name}"]
        assert not words or forks.call(folders[1], words).code == 0
        assert_same_but_argv(place, folders[0] / "pair" / name)
