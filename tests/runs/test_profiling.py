"""A run's profile: phases that sum to the whole, loops, operators and modules, and results that do not depend on it."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import probekit
from probekit.cli import cli
from probekit.runs import execute, resolve
from probekit.runs.profiling import current, profiling
from probekit.runs.profiling.imports import Imports
from probekit.runs.profiling.page import TITLE
from probekit.runs.profiling.phases import IMPORTING, ITSELF, Phases
from probekit.runs.profiling.sampling import MOST_POINTS, Memory
from probekit.runs.profiling.spans import MOST_STEPS_KEPT, Steps
from probekit.runs.profiling.steps import placed

# Their files name times, the machine's or the command's own.
OF_TIMES = {"timings.json", "profile.json", "report.html", "hashes.json"}

STEPS = """
import time

import probekit

class Stepping(probekit.Analysis[probekit.Options]):
    \"\"\"Gradient steps of a layer map, slow enough to be looked into.\"\"\"
    name = "stepping"
    fails = False
    steps = 40

    def run(self, subject, prompts):
        import torch

        layer_map = subject.layer_map("block.1")
        embeddings = torch.zeros_like(subject.embed(prompts[0].input_ids)).requires_grad_()
        optimizer = torch.optim.Adam([embeddings])
        with self.context.loop("descent", self.steps) as loop:
            if loop.start:
                with torch.no_grad():
                    embeddings.copy_(loop.state["embeddings"])
            for step in range(loop.start, self.steps):
                (embeddings.grad,) = torch.autograd.grad((layer_map(embeddings) - 1).abs().sum(), embeddings)
                optimizer.step()
                time.sleep(0.012)
                loop.end_step(lambda: {"embeddings": embeddings.detach()})
                if self.fails and step == 30:
                    raise RuntimeError("not yet")
        return probekit.Result(finding="Done.", tensors={"embeddings": embeddings.detach()})

    def report(self, result, page):
        pass

@probekit.hookimpl
def probekit_analyses():
    return [Stepping]
"""


@pytest.fixture
def stepping(install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path]) -> Callable[..., probekit.Run]:
    """A run of an analysis with a loop of forty steps."""
    install_plugin("stepping", STEPS)
    model = tiny_gpt2()

    def run(output: Path, profile: bool = True, others: tuple[str, ...] = ()) -> probekit.Run:
        return probekit.run(model, ["stepping", *others], "Once", output=output, profile=profile)

    return run


def parts(run: probekit.Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run.path / "profile.json").read_text(encoding="utf-8"))["parts"]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in OF_TIMES
    }


def test_a_profile_tells_phases_loops_operators_and_modules_and_changes_no_other_file(
    stepping: Callable[..., probekit.Run], tmp_path: Path
) -> None:
    plain = stepping(tmp_path / "plain" / "run", profile=False, others=("activation-statistics",))
    run = stepping(tmp_path / "profiled" / "run", others=("activation-statistics",))
    assert files(run.path) == files(plain.path)
    assert not (plain.path / "profile.json").exists()
    assert current() is None
    [part] = parts(run)
    assert sum(phase["seconds"] for phase in part["phases"]) == pytest.approx(part["seconds"], rel=1e-3)
    names = [phase["name"] for phase in part["phases"]]
    assert {"loading the model", "stepping", "activation-statistics", "drawing the report", ITSELF} <= set(names)
    spans = {(span["analysis"], span["label"]): span for span in part["spans"]}
    loop = spans["stepping", "descent"]
    assert loop["steps"] == 40
    assert 0.012 <= loop["low"] <= loop["median"] <= loop["high"]
    assert ("passes over the prompts", "prompts") in spans
    [look] = part["looks"]
    assert (look["analysis"], look["label"], look["steps"]) == ("stepping", "descent", 8)
    assert all(look["parts"][name] > 0 for name in ("forward", "backward", "update", "else"))
    modules = {module["name"]: module for module in look["modules"]}
    assert {placed(name) for name in modules} >= {("h.0", "attn"), ("h.0", "mlp"), ("h.1", "attn"), ("h.1", "mlp")}
    assert modules["transformer.h.0.mlp.c_fc"]["forward"] > 0
    assert modules["transformer.h.0.mlp.c_fc"]["backward"] > 0
    # A step of two blocks has four products forward in each, and none of the loop's sleep is an operator.
    assert {entry["name"]: entry["calls"] for entry in look["operators"]}["aten::addmm"] == 8
    assert look["operator_seconds"] < loop["median"]
    report = run.report_path.read_text(encoding="utf-8")
    assert TITLE in report
    assert "40 steps of stepping" in report
    assert TITLE not in plain.report_path.read_text(encoding="utf-8")
    assert run.document()["profile"] == str(run.path / "profile.json")
    assert "profile" not in plain.document()


def test_a_report_is_drawn_again_with_its_profile(stepping: Callable[..., probekit.Run], tmp_path: Path) -> None:
    run = stepping(tmp_path / "run")
    before = run.report_path.read_bytes()
    run.report_path.unlink()
    outcome = CliRunner().invoke(cli, ["report", str(run.path)], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert run.report_path.read_bytes() == before


@pytest.mark.parametrize("damage", ["{", '{"schema": 1}', '{"schema": 1, "parts": [{}]}', '{"schema": 9, "parts": []}'])
def test_a_damaged_profile_is_named(
    damage: str, tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = probekit.run(tiny_gpt2(), "pseudo-inverse", "Once", output=tmp_path / "run")
    (run.path / "profile.json").write_text(damage, encoding="utf-8")
    with pytest.raises(probekit.UsageError, match=r"profile\.json' is (damaged|no profile)"):
        CliRunner().invoke(cli, ["report", str(run.path)], catch_exceptions=False)


def test_a_damaged_profile_does_not_keep_a_run_from_ending(
    stepping: Callable[..., probekit.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = probekit.Plugins().analysis("stepping")
    monkeypatch.setattr(kind, "fails", True)
    failed = stepping(tmp_path / "run")
    (failed.path / "profile.json").write_text('{"schema": 1, "parts": [{}]}', encoding="utf-8")
    monkeypatch.setattr(kind, "fails", False)
    assert probekit.resume(failed.path).status == "done"


def test_a_failed_run_has_its_profile_and_a_resumed_one_that_of_both_processes(
    stepping: Callable[..., probekit.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stepping(tmp_path / "whole" / "run", profile=False)
    kind: Any = probekit.Plugins().analysis("stepping")
    monkeypatch.setattr(kind, "fails", True)
    failed = stepping(tmp_path / "failed" / "run")
    assert failed.status == "failed"
    before = parts(failed)
    assert len(before) == 1
    monkeypatch.setattr(kind, "fails", False)
    with profiling():
        run = probekit.resume(failed.path)
    assert run.status == "done"
    first, second = parts(run)
    assert first == before[0]
    assert sum(span["steps"] for span in second["spans"] if span["label"] == "descent") == 40
    assert torch.equal(
        torch.as_tensor(run.result.tensors["embeddings"]), torch.as_tensor(whole.result.tensors["embeddings"])
    )
    assert "Process 2" in run.report_path.read_text(encoding="utf-8")


def test_an_interrupted_run_has_its_profile_and_what_is_resumed_without_one_keeps_it(
    stepping: Callable[..., probekit.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
            if done >= 15:
                signal.raise_signal(signal.SIGINT)

        def message(self, text: str) -> None:
            pass

    plugins = probekit.Plugins()
    model = stepping(tmp_path / "first" / "run", profile=False).manifest["configuration"]["model"]
    values = {"model": model, "plugins": ["stepping"], "prompts": ["Once"]}
    place = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), profiling():
        execute(resolve([("test", values)], plugins), plugins, place, Interrupting())
    assert TITLE in (place / "report.html").read_text(encoding="utf-8")
    run = probekit.resume(place)
    assert len(parts(run)) == 1
    assert "The run took 2 processes" in run.report_path.read_text(encoding="utf-8")


def test_the_command_line_profiles_one_run_and_prints_where_it_is(
    tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["run", "--model", str(tiny_gpt2()), "--plugin", "pseudo-inverse", "--prompt", "Once", "--json"]
    outcome = CliRunner().invoke(
        cli, [*arguments, "--profile", "--output", str(tmp_path / "run")], catch_exceptions=False
    )
    document = json.loads(outcome.stdout)
    assert document["profile"] == str(tmp_path / "run" / "profile.json")
    [part] = json.loads(Path(document["profile"]).read_text(encoding="utf-8"))["parts"]
    assert part["phases"][0]["name"] == "start-up of Python"
    for other in ("--compare-random", "--dry-run"):
        with pytest.raises(probekit.UsageError, match=other):
            CliRunner().invoke(cli, [*arguments, "--profile", other], catch_exceptions=False)
    assert current() is None


def test_a_recording_has_a_profile_too(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    probekit.record(tiny_gpt2(), ["Once", "Twice"], output=tmp_path / "recording")
    run = probekit.run(
        plugins="activation-statistics",
        activations=tmp_path / "recording",
        output=tmp_path / "run",
        profile=True,
    )
    assert run.status == "done"
    assert parts(run)[0]["weights"] == {}


@pytest.mark.parametrize("what", ["operators.read", "window._recording"])
def test_what_torch_cannot_tell_is_a_note_and_no_failure(
    what: str, stepping: Callable[..., probekit.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AttributeError("of another version")

    monkeypatch.setattr(f"probekit.runs.profiling.{what}", refuse)
    run = stepping(tmp_path / "run")
    assert run.status == "done"
    assert "of another version" in parts(run)[0]["notes"][0]


def test_phases_that_an_exception_left_open_end_with_the_one_around_them() -> None:
    phases = Phases()
    with phases.within("outer"):
        phases.enter("inner")
    assert phases.now.name == "everything else"


def test_importing_counts_to_the_package_that_was_asked_for_and_leaves_loaders_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked_for_by_a_test.py").write_text("import time\nimport pulled_in_by_it\ntime.sleep(0.02)\n")
    (tmp_path / "pulled_in_by_it.py").write_text("import time\ntime.sleep(0.05)\n")
    monkeypatch.syspath_prepend(tmp_path)
    phases = Phases()
    imports, finders = Imports(phases), [*sys.meta_path]
    with imports.watched():
        module = importlib.import_module("asked_for_by_a_test")
    assert sys.meta_path == finders
    assert not {"exec_module", "create_module"} & set(vars(module.__spec__.loader))  # type: ignore[union-attr]
    assert imports.asked["asked_for_by_a_test"] >= 0.07
    assert 0.02 <= imports.own["asked_for_by_a_test"] < imports.own["pulled_in_by_it"]
    assert "pulled_in_by_it" not in imports.asked
    assert {phase["name"]: phase["seconds"] for phase in phases.document()}[IMPORTING] >= 0.07
    for name in ("asked_for_by_a_test", "pulled_in_by_it"):
        monkeypatch.delitem(sys.modules, name)


def test_steps_and_looks_at_memory_are_thinned_so_that_a_long_run_keeps_no_more_than_a_short_one() -> None:
    steps = Steps()
    for number in range(50_000):
        steps.add(number)
    assert steps.count == 50_000
    assert len(steps.seconds) <= MOST_STEPS_KEPT
    low, median, high = steps.percentiles() or (0.0, 0.0, 0.0)
    assert (low, median, high) == pytest.approx((5_000, 25_000, 45_000), rel=0.02)
    memory = Memory(lambda resident, anonymous: None)
    for look in range(20_000):
        memory._keep(0.02 * look, look, 0)
    assert len(memory.points) <= MOST_POINTS
    assert max(point[1] for point in memory.points) == 19_999
    assert [point[0] for point in memory.points] == sorted(point[0] for point in memory.points)


def test_no_thread_outlives_a_profile() -> None:
    before = threading.active_count()
    with profiling(), profiling() as inner:
        assert inner is current()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("transformer.h.3.attn.c_attn", ("h.3", "attn")),
        ("model.layers.11", ("layers.11", "the block itself")),
        ("model.norm", ("", "model.norm")),
        ("", ("", "the model itself")),
    ],
)
def test_a_module_is_told_by_its_block_and_its_part_of_it(path: str, place: tuple[str, str]) -> None:
    assert placed(path) == place
