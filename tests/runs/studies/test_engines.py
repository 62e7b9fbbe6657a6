"""Engines without a cluster: who gets which cell, what happens when a worker dies, and what is refused before."""

from __future__ import annotations

import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w

from probekit.errors import ProbekitError, UsageError
from probekit.models.spec import ModelSpec
from probekit.plugins import Plugins
from probekit.runs.studies import Study, study
from probekit.runs.studies.cells import Cell, expand
from probekit.runs.studies.engines.cluster import first_sentence
from probekit.runs.studies.engines.crew import ATTEMPTS, Crew, choose
from probekit.runs.studies.engines.needs import Needs, gpus_of, parse_memory
from probekit.runs.studies.engines.on_ray import OnRay
from probekit.runs.studies.engines.worker import Ended, Ready, Sent, Settings, Worker
from probekit.runs.studies.file import read_study
from probekit.runs.studies.work import Work
from tests.runs.folders import assert_same, contents


class DiedError(Exception):
    """Ray's word for a worker that is gone."""


class TaskError(DiedError):
    """Ray's word for an exception of the worker's own code."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(eq=False)
class Call:
    """A call of a worker that was begun; it is carried out when it is waited for."""

    actor: Actor
    method: str
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class Actor:
    """A worker within this process."""

    ray: Ray
    number: int
    worker: Worker
    declared: dict[str, Any]
    gone: bool = False

    def __getattr__(self, method: str) -> Any:
        if method == "stop":
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.worker.stop))
        return SimpleNamespace(remote=lambda *arguments: Call(self, method, arguments))


@dataclass
class Ray:
    """What a crew uses of Ray, in this process: calls are carried out one after another, in the order of their begin.

    `happens` is asked first, and may raise or give another answer than None.
    """

    happens: Callable[[Actor, str, tuple[Any, ...]], Any] = lambda *_: None
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=DiedError, RayTaskError=TaskError))
    actors: list[Actor] = field(default_factory=list)
    begun: list[tuple[int, str]] = field(default_factory=list)

    def remote(self, **_: Any) -> Callable[[type[Worker]], Any]:
        return lambda worker: SimpleNamespace(
            options=lambda **declared: SimpleNamespace(remote=lambda settings: self._made(worker(settings), declared))
        )

    def _made(self, worker: Worker, declared: dict[str, Any]) -> Actor:
        self.actors.append(Actor(self, len(self.actors) + 1, worker, declared))
        return self.actors[-1]

    def wait(self, calls: Sequence[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        return list(calls[:1]), list(calls[1:])

    def get(self, call: Call) -> Any:
        assert not call.actor.gone, "nobody waits for a worker that was sent away"
        if call.method == "carry_out":
            self.begun.append((call.actor.number, call.arguments[0].key))
        answer = self.happens(call.actor, call.method, call.arguments)
        return getattr(call.actor.worker, call.method)(*call.arguments) if answer is None else answer

    def kill(self, actor: Actor, no_restart: bool) -> None:
        assert no_restart
        actor.gone = True

    def available_resources(self) -> dict[str, float]:
        return {}


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self.steps.append((done, total))

    def message(self, text: str) -> None:
        self.messages.append(text)


@dataclass
class InProcess:
    """The engine of Ray's crew on the Ray above."""

    ray: Ray
    size: int = 2
    token: tuple[str, str] = ("token", "right")

    def carry_out(self, work: Work) -> None:
        (work.folder / "token").write_text("right")
        settings = Settings(work.folder, Path.cwd(), {}, [], 1, work.seconds_between_saves, self.token)
        try:
            Crew(self.ray, work, settings, Needs(1), self.size).carry_out()
        finally:
            (work.folder / "token").unlink()
            assert all(actor.gone for actor in self.ray.actors), "every worker is sent away in the end"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: Path | str, **changes: Any) -> Path:
    """Four cells: two blocks, two seeds."""
    run: dict[str, Any] = {
        "model": {"name": str(folder)},
        "plugins": "gradient-inverter",
        "options": {"sites": "block.$block", "steps": 3, "next_token": False},
        "seeds": 2,
        "sweep": {"block": [0, 2]},
    }
    Path("s.toml").write_text(tomli_w.dumps({"title": "t", "runs": {"a": run | changes}}), encoding="utf-8")
    return Path("s.toml")


def pretended(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
    """Cells that are done without being carried out."""
    return Ended("done") if method == "carry_out" else None


def carried_out(path: Path, ray: Ray, plugins: Plugins, size: int = 2, **more: Any) -> tuple[Study, Listener]:
    listener = Listener()
    return study(path, "out", manager=plugins, listener=listener, engine=InProcess(ray, size), **more), listener


# Workers


def test_workers_write_the_files_that_this_process_writes(model: Path, plugins: Plugins) -> None:
    path = write(model, sweep={"block": [0, 2, 9]})
    study(path, "expected", manager=plugins)
    ray = Ray()
    outcome, listener = carried_out(path, ray, plugins)
    assert_same(Path("out"), Path("expected"))
    assert (outcome.done, len(outcome.failures)) == (4, 2)
    assert set(Counter(key for _, key in ray.begun).values()) == {1}
    never = {"max_restarts": 0, "max_task_retries": 0}  # by Ray itself, which does not know what was written
    assert [actor.declared for actor in ray.actors] == [{"num_cpus": 1, "num_gpus": 0.0} | never] * 2
    assert "Cell 1 of 6 on worker 1: a (block 0, seed 0)" in listener.messages
    assert any(text.startswith("Cell 5 of 6 on worker") and "no site 'block.9'" in text for text in listener.messages)
    assert listener.steps == [(number, 6) for number in range(1, 7)]
    again = Ray()
    carried_out(path, again, plugins)
    assert again.actors == [], "a second call repeats nothing"


@pytest.mark.parametrize("late", [False, True], ids=["before it has found anything", "after it has written it all"])
def test_the_cell_of_a_worker_that_dies_is_repeated_by_another(model: Path, plugins: Plugins, late: bool) -> None:
    path = write(model)
    study(path, "expected", manager=plugins)
    died: list[str] = []

    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "carry_out" and len(ray.begun) == 2:
            died.append(arguments[0].key)
            if late:
                actor.worker.carry_out(*arguments)
            raise DiedError("The actor died. At once.")
        return None

    ray = Ray(happens)
    outcome, listener = carried_out(path, ray, plugins)
    assert_same(Path("out"), Path("expected"))
    assert (outcome.done, len(ray.actors)) == (4, 3)
    again = [] if late else died
    assert Counter(key for _, key in ray.begun) == Counter([cell.key for cell in outcome.cells] + again)
    assert [text for text in listener.messages if "died" in text] == [
        f"Worker 2 on {Ready(*ray.actors[1].worker.get_ready()).host} died; cell 2 of 4 is repeated."
    ]


def test_a_cell_that_ends_every_worker_is_a_failure_and_the_others_are_done(model: Path, plugins: Plugins) -> None:
    path = write(model)
    deadly = expand(read_study(path, {}), plugins)[1].key

    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "carry_out" and arguments[0].key == deadly:
            raise DiedError("killed")
        return None

    ray = Ray(happens)
    outcome, _ = carried_out(path, ray, plugins)
    assert (outcome.done, list(outcome.failures)) == (3, [deadly])
    assert f"Its worker died {ATTEMPTS} times" in outcome.failures[deadly]
    assert Counter(key for _, key in ray.begun)[deadly] == ATTEMPTS
    idle = Ray(happens)
    carried_out(path, idle, plugins)
    assert idle.actors == []
    healed, _ = carried_out(path, Ray(), plugins, retry_failed=True)
    assert (healed.done, healed.failures) == (4, {})


def test_a_worker_that_never_gets_a_place_does_not_hold_up_the_end(model: Path, plugins: Plugins) -> None:
    class Full(Ray):
        """Has room for one worker."""

        def wait(self, calls: Sequence[Call], timeout: float) -> tuple[list[Call], list[Call]]:
            placed = [call for call in calls if call.actor.number == 1]
            assert placed, "only those are waited for that have no place"
            return placed[:1], [call for call in calls if call is not placed[0]]

    ray = Full(pretended)
    outcome, _ = carried_out(write(model), ray, plugins)
    assert len(ray.begun) == len(outcome.cells)
    assert len(ray.actors) == 2


def test_shares_that_begin_at_the_same_moment_do_not_refuse_each_other(model: Path, plugins: Plugins) -> None:
    """One has made the folder, and has not said yet whose it is."""
    (Path("out") / "cells").mkdir(parents=True)
    outcome = study(write(model), "out", manager=plugins, shard=(1, 2))
    assert outcome.done == 2


def test_what_a_process_left_of_a_cell_that_it_had_hardly_begun_is_no_hindrance(model: Path, plugins: Plugins) -> None:
    path = write(model)
    [first, *_] = expand(read_study(path, {}), plugins)
    (Path("out") / "cells" / first.key / "analyses").mkdir(parents=True)
    assert study(path, "out", manager=plugins).done == 4


@pytest.mark.parametrize("gpus", [float("nan"), float("inf"), 1.5, -1.0])
def test_a_number_of_gpus_that_there_cannot_be_is_a_sentence(gpus: float, model: Path, plugins: Plugins) -> None:
    with pytest.raises(UsageError, match=r"A worker cannot have .* GPUs; expected a whole number, or a share"):
        study(write(model), "out", manager=plugins, engine=OnRay(gpus=gpus))


def test_workers_that_never_get_ready_end_the_study_with_a_sentence(model: Path, plugins: Plugins) -> None:
    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        raise DiedError("The worker ran out of memory. And much more.")

    ray = Ray(happens)
    with pytest.raises(ProbekitError, match=r"die before they have a cell: The worker ran out of memory\.$"):
        carried_out(write(model), ray, plugins)
    assert len(ray.actors) == 2 + ATTEMPTS - 1
    assert Path("out/report.html").is_file()


def test_a_bug_in_a_worker_shows_and_ends_all(model: Path, plugins: Plugins) -> None:
    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "carry_out":
            raise TaskError(OSError("No space left on device"))
        return None

    with pytest.raises(OSError, match="No space left"):
        carried_out(write(model), Ray(happens), plugins)


def test_a_worker_that_sees_another_folder_is_refused(model: Path, plugins: Plugins, monkeypatch: Any) -> None:
    monkeypatch.setattr("probekit.runs.studies.engines.worker.SECONDS_TO_SEE", (0.0,))
    with pytest.raises(UsageError, match=r"does not see the folder '.*out'; give an --output on a disk"):
        study(write(model), "out", manager=plugins, engine=InProcess(Ray(), token=("token", "another")))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ({"versions": {"torch": "2.1"}}, r"has other packages than there are here: .*torch \(.+ here, 2\.1 there\)"),
        ({"plugins": {"gradient-inverter": "failed"}}, r"gradient-inverter \(loaded here, failed there\)"),
    ],
)
def test_a_worker_with_other_packages_is_refused(
    model: Path, plugins: Plugins, what: dict[str, Any], sentence: str
) -> None:
    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        return actor.worker.get_ready()._replace(**what)

    with pytest.raises(UsageError, match=sentence):
        carried_out(write(model), Ray(happens), plugins)
    assert contents(Path("out/cells")) == {}


def test_a_worker_whose_plugins_have_other_options_fails_its_cells(model: Path, plugins: Plugins) -> None:
    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "carry_out" and arguments[0].key != "other":
            return actor.worker.carry_out(arguments[0]._replace(key="other"))
        return None

    carried_out(write(model, seeds=1, sweep={}, options={}), Ray(happens), plugins)
    assert "other options for its analyses" in Path("out/cells/other.failed.json").read_text()


def test_an_interrupt_begins_nothing_more_and_saves_what_was_begun(model: Path, plugins: Plugins) -> None:
    path = write(model)
    study(path, "expected", manager=plugins)

    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "carry_out" and len(ray.begun) == 2:
            signal.raise_signal(signal.SIGINT)
            actor.worker.stop()  # as the crew says it from its own process, while the cell is carried out
        return None

    ray = Ray(happens)
    with pytest.raises(KeyboardInterrupt):
        carried_out(path, ray, plugins)
    states = [path.read_text().partition('"status": "')[2].partition('"')[0] for path in Path("out").rglob("run.json")]
    assert sorted(states) == ["done", "interrupted", "interrupted"]
    assert Path("out/report.html").is_file()
    outcome, _ = carried_out(path, Ray(), plugins)
    assert outcome.done == 4
    assert_same(Path("out"), Path("expected"))


def test_a_worker_that_dies_while_the_study_stops_is_not_replaced(model: Path, plugins: Plugins) -> None:
    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "carry_out":
            signal.raise_signal(signal.SIGINT)
            raise DiedError("killed")
        return None

    ray = Ray(happens)
    with pytest.raises(KeyboardInterrupt):
        carried_out(write(model), ray, plugins, size=1)
    assert (len(ray.actors), len(ray.begun)) == (1, 1)


def test_a_cell_that_interrupts_itself_ends_the_study_as_it_does_in_one_process(model: Path, plugins: Plugins) -> None:
    def happens(actor: Actor, method: str, arguments: tuple[Any, ...]) -> Any:
        return Ended("interrupted") if method == "carry_out" else None

    ray = Ray(happens)
    with pytest.raises(KeyboardInterrupt):
        carried_out(write(model), ray, plugins, size=1)
    assert len(ray.begun) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("The actor died. Much more. And more", "The actor died."),
        ("It died in its creation task.\nTraceback\nModuleNotFoundError: No module named 'probekit'", "No module"),
        ("", "RuntimeError."),
    ],
)
def test_of_what_ray_says_the_sentence_that_tells_is_kept(text: str, sentence: str) -> None:
    assert sentence in first_sentence(RuntimeError(text))
    assert "Much" not in first_sentence(RuntimeError(text))


# Who gets which cell


def test_a_worker_keeps_to_its_model_while_there_are_cells_of_it(model: Path, plugins: Plugins) -> None:
    path = write(
        model,
        model={"name": str(model), "weights": "random", "weights_seed": "$weights"},
        sweep={"weights": [1, 2, 3], "block": [0, 2]},
    )
    ray = Ray(pretended)
    cells = {cell.key: cell for cell in expand(read_study(path, {}), plugins)}
    carried_out(path, ray, plugins)
    assert sorted(key for _, key in ray.begun) == sorted(cells)
    for worker in (1, 2):
        seeds = [cells[key].resolved.config.model.weights_seed for number, key in ray.begun if number == worker]
        assert len(seeds) == 6
        assert sum(one != other for one, other in pairwise(seeds)) == 1, "it loads two models"


def test_the_choice_of_a_cell() -> None:
    def cell(model: str) -> Any:
        return SimpleNamespace(resolved=SimpleNamespace(config=SimpleNamespace(model=ModelSpec(name=model))))

    a, b, c, d = cell("a"), cell("b"), cell("b"), cell("c")
    specs = {name: ModelSpec(name=name) for name in "abcz"}
    assert choose([a, b, c, d], specs["b"], []) is b
    assert choose([a, b, c, d], None, [None, specs["a"]]) is b
    assert choose([a, b, c, d], specs["z"], [specs["a"], specs["b"]]) is d
    assert choose([a, b, c], specs["z"], [specs["a"], specs["b"]]) is b, "where most are waiting"


# What a worker needs


@pytest.mark.parametrize(
    ("text", "size"),
    [("12GiB", 12 * 2**30), ("500 MB", 5 * 10**8), ("1.5gb", 15 * 10**8), ("64KiB", 2**16), ("1TiB", 2**40)],
)
def test_memory_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "12", "GiB", "-1GB", "0GB", "1 parsec", "nan GB", "1e3MB"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 12GiB"):
        parse_memory(text)


def test_how_many_workers_a_cluster_has_room_for() -> None:
    there = {"CPU": 8.0, "GPU": 2.0, "memory": 10e9}
    assert Needs(1).fitting(there) == 8
    assert Needs(3).fitting(there) == 2
    assert Needs(1, gpus=1).fitting(there) == 2
    assert Needs(1, gpus=0.1).fitting(there) == 8, "twenty tenths, for eight cores"
    assert Needs(1, gpus=0.5, memory=3_000_000_000).fitting(there) == 3
    assert Needs(1, gpus=1).fitting({"CPU": 8.0}) == 0


@pytest.mark.parametrize(
    ("spec", "there", "gpus"),
    [
        ({}, 4, 0),
        ({"device": "cpu"}, 4, 0),
        ({"device": "cuda"}, 0, 1),
        ({"device_map": "auto"}, 4, 1),
        ({"device_map": "auto"}, 0, 0),
        ({"quantization": "int8"}, 4, 1),
        ({"quantization": "int8", "device": "cpu"}, 4, 0),
    ],
)
def test_gpus_go_by_what_the_models_ask_for(spec: dict[str, Any], there: float, gpus: float) -> None:
    assert gpus_of([ModelSpec(), ModelSpec(**spec)], there) == gpus


# The command line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workers", "2"], "--workers is said of workers, and here is this process alone; add --engine ray."),
        (["--address", "auto"], "--address is said of workers"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker is said of workers"),
        (["--engine", "ray", "--memory-per-worker", "much"], "The memory of a worker is 'much'"),
        (["--engine", "ray", "--workers", "0"], "--workers"),
        (["--engine", "slurm"], "'slurm' is not one of 'local', 'ray'"),
    ],
)
def test_wrong_flags_are_refused(
    model: Path, arguments: list[str], sentence: str, probekit_cli: Callable[..., Any]
) -> None:
    ended = probekit_cli("study", write(model), "--output", "out", *arguments)
    assert (ended.code, sentence in ended.sentence) == (2, True), ended.sentence
    assert not Path("out").exists()


def test_without_ray_it_is_said_what_to_install(
    model: Path, probekit_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = probekit_cli("study", write(model), "--output", "out", "--engine", "ray")
    assert (ended.code, "install probekit[ray]" in ended.sentence) == (2, True), ended.sentence


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_at_which_nobody_answers_is_refused_at_once(
    model: Path, probekit_cli: Callable[..., Any], form: str
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = form.format(taken.getsockname()[1])
        ended = probekit_cli("study", write(model), "--output", "out", "--engine", "ray", "--address", address)
    assert (ended.code, f"no Ray cluster at '{address}'" in ended.sentence) == (2, True), ended.sentence


def test_a_cell_on_its_way_is_plain_data(plugins: Plugins, model: Path) -> None:
    import pickle

    cell: Cell = expand(read_study(write(model), {}), plugins)[0]
    sent = Sent(cell.run, cell.variables, cell.values, cell.key)
    assert b"probekit_plugins" not in pickle.dumps(sent)
    assert pickle.loads(pickle.dumps(sent)) == sent
