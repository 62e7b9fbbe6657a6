"""Memory over 1000 steps of a descent: one block of GPT-2, 8 restarts, in a process of its own.

Garbage collection is off while it is measured: what is left over by a step must go by itself.
"""

from __future__ import annotations

import gc

import torch

from benchmarks.descent import Descent
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Figure, Outcome, Settings
from benchmarks.process import TELLS, afresh, forget_peak, live_tensors, peak_mib, resident_mib

RESTARTS = 8
# The first and the last of so many steps are compared, after as many that are not.
WINDOW = 100
GOAL_MIB = 1.0


def growth(steps: int) -> dict[str, float]:
    """What grows between the second hundred steps of a descent and the last."""
    subject = gpt2(depth=1)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
    layer_map = subject.layer_map("block.0")
    with torch.no_grad():
        target = layer_map(subject.embed(input_ids))
    start = 0.1 * torch.randn(RESTARTS, TOKENS, subject.width, generator=generator)
    descent = Descent(layer_map, start, target)
    window = min(WINDOW, steps // 4)

    def held() -> dict[str, float]:
        forget_peak()
        resident = 0.0
        for _ in range(window):
            descent.step()
            resident = max(resident, resident_mib())
        return {"tensors": live_tensors(), "resident": resident, "peak": peak_mib()}

    gc.collect()
    gc.disable()
    for _ in range(window):
        descent.step()
    before = held()
    for _ in range(steps - 3 * window):
        descent.step()
    after = held()
    return {what: after[what] - before[what] for what in before}


def run(settings: Settings) -> Outcome:
    """Measure in a fresh process, whose peak no other benchmark has set."""
    outcome = Outcome("Memory over 1000 steps")
    if not TELLS:
        outcome.notes.append("Left out: it reads what only Linux tells.")
        return outcome
    grown = afresh(growth, 20 if settings.quick else 1000)
    outcome.figures += [
        Figure("live tensors, after step 1000 − after step 200", grown["tensors"], unit="", goal=0),
        Figure("resident memory, steps 901–1000 − steps 101–200", grown["resident"], unit="MiB", goal=GOAL_MIB),
        Figure("peak memory, steps 901–1000 − steps 101–200", grown["peak"], unit="MiB", goal=GOAL_MIB),
    ]
    return outcome
