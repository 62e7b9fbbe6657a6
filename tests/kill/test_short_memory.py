"""Runs whose memory ran out, that are killed afterwards and go on where memory is plenty: in the batches that they had.

Rows of one batch differ by rounding from those of another, so what is compared is byte for byte the run that had too
little memory at the same moment and was left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kill.cases import case
from tests.kill.harness import DidNotEndError, Forks

# The n-th batch of more than one row does not fit, once.
FULL = """
import pathlib, torch
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

forward, seen = GPT2Block.forward, 0

def small(self, hidden_states, *arguments, **more):
    global seen
    seen += len(hidden_states) > 1
    if seen == {number} and len(hidden_states) > 1:
        pathlib.Path(".full").write_text("")
        raise torch.OutOfMemoryError("on purpose")
    return forward(self, hidden_states, *arguments, **more)

GPT2Block.forward = small
"""
# Which batches do not fit: those of a target, of a descent, of a step, of what is measured afterwards.
MOMENTS: dict[str, list[int]] = {
    "inverter, adam": [1, 9, 60],
    "inverter, lbfgs": [30],
    "inverter, strong": [4, 30, 60, 80],
    "inverter, shared pass": [1, 20, 50],
    "exact inverter": [1, 5, 30, 90],
    "leakage audit": [10, 60],
    "orthogonal walk": [2, 12, 30],
    "clamped walk": [5, 30],
    "null-space walk": [5, 40],
    "spectrum, dense": [1, 4],
    "spectrum, matrix-free": [2, 9],
    "repetition": [3, 10, 40],
    "frozen head": [2, 9, 20],
    "autoencoder": [2, 5, 20],
    "control codes": [2, 7, 20],
    "one-word autoencoder": [3, 60, 90],
}
QUICK = "inverter, strong"
# So many changes of the file system after that: a folder, a file and its name.
RECORDED = 14


NAMES = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in MOMENTS]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_whose_memory_ran_out_goes_on_in_the_same_batches(
    name: str, forks: Forks, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    run = case(name, tiny_gpt2(), counted=True)
    kills = 0
    for number in MOMENTS[name] if name != QUICK else MOMENTS[name][2:3]:
        code = FULL.format(number=number)
        try:
            whole = run.whole(forks, tmp_path, code, since=".full")
        except DidNotEndError as error:  # of something that is not done in batches, as a step of training
            if "Out of memory" not in str(error):
                raise
            continue
        # From where it is written down that memory ran out; a run that is killed before knows nothing of it.
        for moment in {RECORDED, run.changes // 3, 2 * run.changes // 3} if run.changes > 3 * RECORDED else ():
            kills += run.killed(forks, whole, [{"die_at": moment, "since": ".full"}], code)
    assert kills >= 2
