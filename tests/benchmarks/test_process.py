"""What is measured of a process: memory that no file backs, while it is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.process import TELLS, afresh, anonymous_mib, watched

pytestmark = pytest.mark.skipif(not TELLS, reason="only Linux tells")
MIB = 2**20


def threads_of_another(here: int) -> tuple[bool, int]:
    return os.getpid() != here, torch.get_num_threads()


def written_and_gone() -> tuple[float, float, float, float]:
    """What is there of 64 MiB that are written, after they are gone, and what a watch saw of as many; to be called in a
    process of its own, where no other test has left free memory that they may be given.
    """
    before = anonymous_mib()
    written = torch.ones(64 * MIB, dtype=torch.uint8)
    there = anonymous_mib() - before
    del written
    gone = anonymous_mib() - before
    with watched() as peak:
        written = torch.ones(64 * MIB, dtype=torch.uint8)
        time.sleep(0.5)
        del written
    return there, gone, peak.mib - before, anonymous_mib() - before


def test_memory_that_is_written_is_anonymous_and_goes_with_its_tensor_and_a_watch_sees_it() -> None:
    assert afresh(written_and_gone) == pytest.approx((64, 0, 64, 0), abs=4)


def test_a_mapped_file_is_not_anonymous_however_much_of_it_is_read(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(64 * MIB, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    load_file(tmp_path / "a.safetensors")  # what this needs once
    before = anonymous_mib()
    weight = load_file(tmp_path / "a.safetensors")["weight"]
    assert int(weight.sum(dtype=torch.int64)) == 64 * MIB
    assert anonymous_mib() - before < 4


def test_a_watch_of_another_process_ends_with_it() -> None:
    script = "import time; held = b'1' * (64 << 20); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", script]) as process, watched(process.pid) as peak:
        assert process.wait() == 0
    assert 64 < peak.mib < 128


def test_a_process_of_its_own_has_the_threads_of_this_one() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert afresh(threads_of_another, os.getpid()) == (True, 3)
    finally:
        torch.set_num_threads(threads)
