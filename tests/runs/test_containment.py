"""What surrounds an analysis while it computes: its time, the settings of the process, its standard output."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probekit.errors import AnalysisError
from probekit.runs.containment import Containment, TimeIsUpError, limits_time
from probekit.runs.state import read_state
from probekit.testing.process import GlobalState


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def containment(said: list[str]) -> Containment:
    return Containment("hostile", 1, said.append)


# --- time ------------------------------------------------------------------------------------------------------------

needs_alarm = pytest.mark.skipif(not limits_time(), reason="needs the main thread of a Unix process")


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.fixture
def no_other_alarm() -> Iterator[None]:
    """pytest-timeout has one."""
    others = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, *others)


@needs_alarm
def test_whenever_a_block_ends_it_ends_with_a_sentence_or_in_time_and_no_alarm_is_left(no_other_alarm: None) -> None:
    """Blocks that end near their limit, where the alarm may ring at any step of going in and out."""
    handler = signal.getsignal(signal.SIGALRM)
    before = read_state()
    limit, failed, calls = 1e-3, 0, 1000
    for call in range(calls):
        containment = Containment("hostile", 1, lambda _: None, limit)
        try:
            with containment.within():
                spin(limit + (call % 40 - 30) * 2e-6 * (20 if call < 80 else 1))
        except AnalysisError:
            failed += 1
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is handler
    assert read_state() == before
    assert 0 < failed < calls


def late(seconds: float, does: Callable[[], object]) -> None:
    """A block that was given so little time."""
    with Containment("hostile", 1, print, seconds).within():
        does()


def swallow() -> None:
    with contextlib.suppress(TimeIsUpError):
        time.sleep(60)


def switch_off() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(0.1)


def fail() -> None:
    swallow()
    raise ValueError("of its own")


@needs_alarm
@pytest.mark.parametrize("seconds", [1e-6, 1e-5, 3e-5])
def test_time_that_is_up_before_the_block_begins_is_the_same(seconds: float, no_other_alarm: None) -> None:
    for _ in range(100):
        with pytest.raises(AnalysisError, match="It took longer"):
            late(seconds, lambda: time.sleep(60))


@needs_alarm
@pytest.mark.parametrize("does", [swallow, switch_off])
def test_one_that_takes_more_than_its_time_and_ends_is_late(does: Callable[[], object], no_other_alarm: None) -> None:
    with pytest.raises(AnalysisError, match=r"It took longer than the 0\.05 s"):
        late(0.05, does)


@needs_alarm
def test_an_error_of_its_own_stays_its_own() -> None:
    with pytest.raises(ValueError, match="of its own"):
        late(0.05, fail)


@needs_alarm
def test_the_time_is_that_of_all_blocks_together() -> None:
    containment = Containment("hostile", 1, print, 0.2)
    with containment.within():
        time.sleep(0.1)
    with pytest.raises(AnalysisError, match="It took longer"), containment.within():
        time.sleep(60)
    assert 0.2 <= containment.seconds < 1.0


# --- settings of the process -----------------------------------------------------------------------------------------


def other_threads() -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


class Mode(TorchDispatchMode):
    """Takes part in every operator."""

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), more: Any = None) -> Any:
        return function(*given, **(more or {}))


def fill_nothing() -> None:
    torch.utils.deterministic.fill_uninitialized_memory = False


CHANGES: dict[str, Callable[[], object]] = {
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's grad mode": lambda: torch.set_grad_enabled(False),
    "torch's anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "torch's number of threads": other_threads,
    "torch's deterministic flag": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "torch's filling of memory": fill_nothing,
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's modes": lambda: Mode().__enter__(),
    "numpy's handling of errors": lambda: numpy.seterr(all="raise"),
    "the handlers of signals": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "the alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 100),
    "standard error": lambda: setattr(sys, "stderr", sys.__stdout__),
    "how warnings are shown": lambda: setattr(warnings, "showwarning", print),
    "the collection of garbage": gc.disable,
    "the limit of recursion": lambda: sys.setrecursionlimit(2000),
    "the tracing of calls": lambda: sys.setprofile(lambda *_: None),
    "torch's precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "the environment": lambda: os.environ.update(LEFT_BEHIND="1", PATH=""),
    "the working directory": lambda: os.chdir("/"),
}


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """Whatever a test leaves is put back, so that one that fails is the only one."""
    with GlobalState():
        yield


def test_every_setting_is_tried() -> None:
    assert set(CHANGES) == set(read_state())


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_is_changed_is_put_back_without_a_word(
    name: str, containment: Containment, said: list[str], no_other_alarm: None
) -> None:
    before = read_state()
    with containment.within():
        CHANGES[name]()
        assert read_state()[name] != before[name]
    assert read_state() == before
    assert said == []


@pytest.mark.parametrize("name", CHANGES)
def test_the_test_kit_names_the_same_settings_and_puts_them_back(name: str, no_other_alarm: None) -> None:
    before = read_state()
    with GlobalState() as state:
        CHANGES[name]()
    assert [changed.partition(" (")[0] for changed in state.changed] == [name]
    assert read_state() == before


def test_variables_that_torch_sets_for_itself_are_nobodys_change(
    containment: Containment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with GlobalState() as state, containment.within():
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    assert state.changed == []


def test_settings_of_the_caller_are_what_is_put_back(containment: Containment) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_device("meta")
    os.environ["OF_THE_CALLER"] = "1"
    with containment.within():
        torch.use_deterministic_algorithms(False)
        torch.set_default_device(None)
        del os.environ["OF_THE_CALLER"]
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.empty(1).device.type == "meta"
    assert os.environ["OF_THE_CALLER"] == "1"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_where_no_default_device_was_set_none_is_set_afterwards(containment: Containment, device: str) -> None:
    modes = len(torch.overrides._get_current_function_mode_stack())
    with containment.within():
        torch.set_default_device(device)
    assert len(torch.overrides._get_current_function_mode_stack()) == modes
    assert torch.empty(1).device.type == "cpu"


def test_a_precision_that_torch_does_not_tell_harms_nothing(containment: Containment) -> None:
    """Torch refuses its old name of this setting to those who use the new ones of its backends."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("needs torch's newer names of the setting")
    matmul.fp32_precision = "tf32"  # `own_settings` puts it back
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    with containment.within():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
    with GlobalState() as state:
        pass
    assert state.changed == []
    assert matmul.fp32_precision == "tf32"


def test_a_folder_that_is_gone_does_not_keep_the_rest_from_being_put_back(
    containment: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def leave() -> None:
        with containment.within():
            torch.set_default_dtype(torch.float64)
            folder.rmdir()
            os.chdir("/")

    with pytest.raises(FileNotFoundError):
        leave()
    assert torch.get_default_dtype() == torch.float32
    monkeypatch.chdir(tmp_path)
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    with containment.within():  # it was gone before, and nobody's fault
        pass


# --- standard output -------------------------------------------------------------------------------------------------


def test_of_progress_that_is_written_over_the_last_state_is_kept(containment: Containment, said: list[str]) -> None:
    began = time.perf_counter()
    with containment.within():
        for done in range(20_000):
            sys.stdout.write(f"\r{done} of 20000" + " " * 100)
        sys.stdout.write("\rall done\n")
        for done in range(3):
            print(f"{done} of 3", end="\r")
        sys.stdout.write("\nwith a return\r\nand another\r\nover\rwritten\n")
    assert time.perf_counter() - began < 2
    shown = ["all done", "2 of 3", "with a return", "and another", "written"]
    assert said == [f"hostile printed: {line}" for line in shown]
    assert containment.lines_printed == 5


@pytest.mark.parametrize("end", ["", "\r", "\n"])
def test_progress_without_a_newline_is_a_line_at_the_end(containment: Containment, said: list[str], end: str) -> None:
    with containment.within():
        sys.stdout.write("\r1 of 2\r2 of 2" + end)
    assert said == ["hostile printed: 2 of 2"]


def test_a_line_is_cut(containment: Containment, said: list[str]) -> None:
    began = time.perf_counter()
    with containment.within():
        print("a" * 1_000_000)
        for _ in range(100_000):
            sys.stdout.write("bb")
    assert time.perf_counter() - began < 2
    assert said == ["hostile printed: " + "a" * 2000, "hostile printed: " + "b" * 2000]


def test_bytes_are_kept_as_text(containment: Containment, said: list[str]) -> None:
    with containment.within():
        sys.stdout.buffer.write("ein W\u00f6rt".encode()[:-3])
        sys.stdout.buffer.write(memoryview("\u00f6rt\n".encode()[1:]))
        print("text", flush=True)
        sys.stdout.buffer.write(b"\xff raw\xc3")
        sys.stdout.buffer.flush()
    lines = ["ein W\u00f6rt", "text", "\ufffd raw\ufffd"]
    assert said == [f"hostile printed: {line}" for line in lines]


def test_what_is_asked_of_a_standard_output_is_answered(containment: Containment) -> None:
    with containment.within():
        assert sys.stdout.encoding == "utf-8"
        assert isinstance(sys.stdout.errors, str)
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
        assert not sys.stdout.isatty()
        assert sys.stdout.writable()
        assert sys.stdout.buffer.writable()


def test_what_a_child_prints_goes_to_standard_error(
    containment: Containment, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with containment.within():
        subprocess.run([sys.executable, "-c", "print('from a child')"], stdout=sys.stdout, check=True)
        subprocess.run([sys.executable, "-c", "print('and another')"], stdout=sys.stdout.buffer, check=True)
    ended = capfd.readouterr()
    assert (ended.out, ended.err.split("\n")) == ("", ["from a child", "and another", ""])
    assert said == []
