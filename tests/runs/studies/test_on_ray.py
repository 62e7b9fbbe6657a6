"""Studies on a real Ray cluster of this machine: the files of the local engine, also where workers are killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from probekit.runs.state import OF_TORCH
from probekit.runs.studies import study
from probekit.runs.studies.engines import OnRay
from probekit.runs.studies.engines.cluster import connected
from tests.runs.folders import assert_same

pytest.importorskip("ray")

LEFT = re.compile(r"raylet|gcs_server|ray::|/ray/")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or other tests at the same time would come first


@pytest.fixture(autouse=True)
def nothing_is_left(in_a_folder_of_its_own: None) -> Iterator[None]:
    """No process of Ray that was not there before, no folder of it, and nothing in the environment."""
    environment, processes, handler = dict(os.environ), of_ray(), signal.getsignal(signal.SIGTERM)
    folders = set(Path("/tmp").glob("probekit-ray-*"))
    yield
    ends = time.monotonic() + 30
    while of_ray() - processes and time.monotonic() < ends:
        time.sleep(0.2)
    assert of_ray() - processes == set()
    assert set(Path("/tmp").glob("probekit-ray-*")) - folders == set()
    changed = {name for name, _ in os.environ.items() ^ environment.items()}
    assert changed <= {"PYTEST_CURRENT_TEST", *OF_TORCH}
    assert signal.getsignal(signal.SIGTERM) is handler


def of_ray() -> set[str]:
    """The processes of Ray, by their ids; where there is no /proc, none is seen."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if LEFT.search(path.read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.add(path.parent.name)
        except OSError:
            continue
    return found


class Killer:
    """A listener that ends the worker of some cells by SIGKILL, when they have saved a state."""

    def __init__(self, folder: Path, cells: set[int]) -> None:
        self.messages: list[str] = []
        self.unfinished = 0
        self._folder, self._cells = folder, set(cells)
        self._processes: dict[str, int] = {}

    def progress(self, *_: Any) -> None:
        pass

    def message(self, text: str) -> None:
        self.messages.append(text)
        if ready := re.match(r"Worker (\d+) is ready on .* \(process (\d+)\)", text):
            self._processes[ready[1]] = int(ready[2])
        if begun := re.match(r"Cell (\d+) of \d+ on worker (\d+):", text):
            number = int(begun[1])
            if number in self._cells:
                self._cells.remove(number)
                states = set(self._folder.glob("cells/*/analyses/*/state/*"))
                threading.Thread(target=self._kill, args=(self._processes[begun[2]], states), daemon=True).start()

    def _kill(self, process: int, before: set[Path]) -> None:
        while not (new := set(self._folder.glob("cells/*/analyses/*/state/*.safetensors")) - before):
            time.sleep(0.01)
        place = new.pop().parents[3]
        self.unfinished += json.loads((place / "run.json").read_text())["status"] == "running"
        os.kill(process, signal.SIGKILL)


def write(model: str, steps: int, blocks: list[int], seeds: int) -> Path:
    run = {
        "model": model,
        "plugins": "gradient-inverter",
        "options": {"sites": "block.$block", "steps": steps, "restarts": 2, "next_token": False},
        "seeds": seeds,
        "sweep": {"block": blocks},
    }
    figure = {"run": "a", "table": "restarts", "column": "token_accuracy"}
    expectation = {"id": "e", "claim": "c", "figures": {"f": figure}, "verdicts": {"holds": "count(f) > 0"}}
    Path("s.toml").write_text(
        tomli_w.dumps({"title": "t", "runs": {"a": run}, "expectations": [expectation]}), encoding="utf-8"
    )
    return Path("s.toml")


def begun(killer: Killer) -> list[int]:
    return [int(found[1]) for text in killer.messages if (found := re.match(r"Cell (\d+) of \d+ on worker \d+:", text))]


def test_a_study_of_two_workers_of_which_one_is_killed_writes_the_files_of_this_process(
    tiny_gpt2: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(str(tiny_gpt2()), steps=300, blocks=[0, 2, 9], seeds=2)
    study(path, "expected")
    capfd.readouterr()
    killer = Killer(Path("out"), {2})
    with connected(None, 2):
        outcome = study(path, "out", listener=killer, engine=OnRay(workers=2, cpus=1), seconds_between_saves=0.02)
    assert (outcome.done, len(outcome.failures), killer.unfinished) == (4, 2, 1)
    assert sorted(begun(killer)) == [1, 2, 2, 3, 4, 5, 6], killer.messages
    assert len([text for text in killer.messages if "died; cell 2 of 6 is repeated" in text]) == 1
    assert_same(Path("out"), Path("expected"))
    assert capfd.readouterr() == ("", ""), "Ray says nothing itself"


def test_an_interrupt_at_the_terminal_saves_every_worker_and_ends_with_130(tiny_gpt2: Callable[..., Path]) -> None:
    path = write(str(tiny_gpt2()), steps=400, blocks=[0, 2], seeds=2)
    study(path, "expected")
    command = [sys.executable, "-m", "probekit", "study", str(path), "--output", "out", "--json"]
    process = subprocess.Popen(
        [*command, "--engine", "ray", "--workers", "2", "--cpus-per-worker", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and len(list(Path("out/cells").glob("*/analyses"))) < 2:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert "Stopping at the end of this step" in err
    assert "Traceback" not in err
    assert "ray.io" not in err
    states = [json.loads(path.read_text())["status"] for path in Path("out").rglob("run.json")]
    assert "interrupted" in states
    assert set(states) <= {"done", "interrupted"}
    assert Path("out/report.html").is_file()
    assert study(path, "out").done == 4
    assert_same(Path("out"), Path("expected"))


@pytest.mark.slow
def test_forty_cells_survive_workers_that_are_killed() -> None:
    path = write("demo", steps=40, blocks=[0, 1, 2, 3], seeds=10)
    study(path, "expected")
    chosen = set(random.Random(0).sample(range(1, 41), 3))
    killer = Killer(Path("out"), chosen)
    outcome = study(path, "out", listener=killer, engine=OnRay(workers=2, cpus=1), seconds_between_saves=0.02)
    assert (outcome.done, outcome.failures, killer.unfinished) == (40, {}, 3)
    assert sorted(begun(killer)) == sorted([*range(1, 41), *chosen])
    assert_same(Path("out"), Path("expected"))


@pytest.mark.slow
def test_a_cluster_at_an_address_is_used_and_left_as_it_is(
    tiny_gpt2: Callable[..., Path], probekit_process: Callable[..., Any]
) -> None:
    path = write(str(tiny_gpt2()), steps=3, blocks=[0, 2], seeds=1).absolute()
    with connected(None, 2) as ray:
        address = ray.get_runtime_context().gcs_address
        environment = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
        arguments = ("study", path, "--json", "--engine", "ray", "--address", address, "--workers", "1")
        ended = probekit_process(*arguments, environment=environment)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["cells"] == {"done": 2, "failed": 0, "missing": 0}
        assert len(ray.nodes()) == 1
        assert ray.nodes()[0]["Alive"]
