"""The same bits again: whatever the caller had set, whatever ran before, in another process; and a note where not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import probekit
from probekit.runs.determinism import FILTER, deterministic, told
from probekit.testing.process import GlobalState
from tests.runs.folders import assert_same, contents
from tests.testing.test_bundled import BUNDLED, SMALL

PROMPTS = ["The sky is blue.", "A green sea"]
ANALYSES = ("gradient-inverter", "activation-statistics", "clamped-walk")
OPTIONS = {name: SMALL[name] for name in ANALYSES if name in SMALL}

DRAWING = '''
import probekit


class Drawing(probekit.Analysis[probekit.Options]):
    """Numbers of three generators that belong to nobody."""

    name = "drawing"

    def run(self, subject, prompts):
        import random
        import numpy
        import torch

        drawn = {"python": random.random(), "numpy": float(numpy.random.rand()), "torch": torch.rand(1).item()}
        return probekit.Result(finding="Drawn.", metrics=drawn)

    def report(self, result, page):
        page.prose("Drawn.")


@probekit.hookimpl
def probekit_analyses():
    return [Drawing]
'''

# `put_` without accumulation has no deterministic algorithm on any device.
PUT = "torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))"
UNREPEATABLE = DRAWING.replace("drawn = {", f"{PUT}; drawn = {{")
# Where it goes on it does not meet the operator again.
INTERRUPTED = DRAWING.replace(
    "drawn = {",
    f"""if not getattr(type(self), "interrupted", False):
            type(self).interrupted = True
            {PUT}
            raise KeyboardInterrupt
        drawn = {{""",
)


@pytest.fixture
def begin(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> Callable[..., probekit.Run]:
    """A run of analyses that is done."""

    def run(name: str, analyses: tuple[str, ...] = ANALYSES, **more: Any) -> probekit.Run:
        given = {analysis: OPTIONS[analysis] for analysis in analyses if analysis in OPTIONS}
        found = probekit.run(tiny_gpt2(), analyses, PROMPTS, given, tmp_path / name, **more)
        assert found.status == "done", found.failures
        return found

    return run


# --- what the caller had set, and what ran before --------------------------------------------------------------------


def settings_of_the_caller() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)


def generators() -> list[Any]:
    return [random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]


def test_a_run_depends_on_no_setting_of_its_caller_and_gives_all_back(begin: Callable[..., probekit.Run]) -> None:
    expected = begin("plain").path
    before = generators()
    try:
        with GlobalState():
            settings_of_the_caller()
            drawn = generators()
            with GlobalState() as state, torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
                assert_same(begin("run").path, expected)
            assert state.changed == []
            assert generators() == drawn
    finally:
        random.setstate(before[0])
        torch.set_rng_state(torch.tensor(before[2], dtype=torch.uint8))


def test_what_an_analysis_finds_does_not_depend_on_those_before_it(
    begin: Callable[..., probekit.Run], install_plugin: Callable[..., Path]
) -> None:
    install_plugin("drawing", DRAWING)
    one = begin("one", (*ANALYSES, "drawing")).path
    other = begin("other", ("drawing", *reversed(ANALYSES))).path
    alone = {name: begin(f"alone-{name}", (name,)).path for name in ("drawing", "gradient-inverter")}
    for name in (*ANALYSES, "drawing"):
        assert_same(other / "analyses" / name, one / "analyses" / name)
    for name, path in alone.items():
        assert_same(path / "analyses" / name, one / "analyses" / name)


def test_numbers_of_anybodys_generator_are_the_seeds(
    begin: Callable[..., probekit.Run], install_plugin: Callable[..., Path]
) -> None:
    install_plugin("drawing", DRAWING)
    before = generators()
    found = [begin(f"{seed}-{turn}", ("drawing",), seed=seed).result.metrics for seed in (3, 4) for turn in (0, 1)]
    assert generators() == before
    assert found[0] == found[1] != found[2] == found[3]


# --- operators without a deterministic algorithm ---------------------------------------------------------------------

NOTE = "torch has no deterministic algorithm here for: put_."


def notes(run: probekit.Run, name: str = "drawing") -> list[str]:
    return [note for note in run.results[name].notes if "deterministic" in note]


def test_an_operator_without_a_deterministic_algorithm_becomes_a_note(
    begin: Callable[..., probekit.Run], install_plugin: Callable[..., Path], recwarn: pytest.WarningsRecorder
) -> None:
    install_plugin("drawing", UNREPEATABLE)
    run = begin("run", ("gradient-inverter", "drawing"))
    assert [note.startswith(NOTE) for note in notes(run)] == [True]
    assert notes(run, "gradient-inverter") == []
    assert NOTE in run.report_path.read_text(encoding="utf-8")
    assert [str(warning.message) for warning in recwarn if "deterministic" in str(warning.message)] == []
    verified = probekit.verify(run.path, recompute=True)
    assert verified.problems == []
    again = begin("again", ("drawing",))  # torch's warning was given before, from the same place
    assert notes(again) == notes(run)


def test_a_resumed_run_knows_what_was_used_before_it(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    install_plugin("drawing", INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        probekit.run(tiny_gpt2(), "drawing", PROMPTS, output=tmp_path / "run")
    resumed = probekit.resume(tmp_path / "run")
    assert [note.startswith(NOTE) for note in notes(resumed)] == [True]


def test_other_warnings_go_where_they_went(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with deterministic(), told(seen.append):
            torch.zeros(2).put_(torch.tensor([1]), torch.ones(1))
            warnings.warn("something else", stacklevel=1)
            warnings.warn("Flash Attention defaults to a non-deterministic algorithm. To …", stacklevel=1)
            warnings.warn(
                "Deterministic behavior was enabled with either … or …, but this operation is not deterministic "
                "because it uses CuBLAS and you have CUDA >= 10.2.",
                stacklevel=1,
            )
            warnings.filterwarnings("ignore", "of somebody else")
        patterns = [entry[1].pattern for entry in warnings.filters if entry[1]]
        assert "of somebody else" in patterns
        assert FILTER not in patterns
    assert [str(warning.message) for warning in caught] == ["something else"]
    assert seen == ["put_", "Flash Attention", "CuBLAS"]


@pytest.fixture
def own_state() -> Iterator[None]:
    with GlobalState():
        yield


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_callers_mode_is_given_back(mode: int, own_state: None) -> None:
    torch.set_deterministic_debug_mode(mode)
    with deterministic():
        assert torch.get_deterministic_debug_mode() == 1
    assert torch.get_deterministic_debug_mode() == mode


# --- in other processes ----------------------------------------------------------------------------------------------

IN_A_PROCESS = """
import json, sys
import torch
import probekit
*given, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
model, output, options = given
run = probekit.run(model, list(options), ["The sky is blue.", "A green sea"], options, output, seed=3)
sys.exit(f"{run.failures}" if run.failures else 0)
"""


def in_another_process(model: Path, output: Path, options: dict[str, Any]) -> None:
    """A run of these analyses in a process whose sets are in another order."""
    given = json.dumps([str(model), str(output), options, torch.get_num_threads()])
    environment = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"}
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, given], env=environment, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def found(run: Path) -> dict[str, bytes]:
    """What the analyses found: but for their pages, some of which show times."""
    files = contents(run / "analyses")
    return {name: content for name, content in files.items() if not name.endswith("/page.json")}


def assert_the_same_in_two_processes(model: Path, folder: Path, options: dict[str, Any]) -> None:
    one, other = folder / "one", folder / "other"
    run = probekit.run(model, list(options), PROMPTS, options, one, seed=3)
    assert run.status == "done", run.failures
    in_another_process(model, other, options)
    first, second = found(one), found(other)
    assert [name for name in {**first, **second} if first.get(name) != second.get(name)] == []
    assert probekit.verify(one).digest == probekit.verify(other).digest != ""


def test_two_processes_write_the_same_bytes(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    assert_the_same_in_two_processes(tiny_gpt2(), tmp_path, {name: SMALL.get(name, {}) for name in ANALYSES})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(analysis.name for record in BUNDLED for analysis in record.analyses))
def test_two_processes_write_the_same_bytes_for_every_bundled_analysis(
    name: str, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    assert_the_same_in_two_processes(tiny_gpt2(n_positions=64), tmp_path, {name: SMALL.get(name, {})})
