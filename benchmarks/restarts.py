"""32 restarts as one batch against one restart: GPT-2 124 M, one block, 5 tokens each.

The two amounts of work are compared in probekit, and by hand, which says how much of the ratio is the model's own: one
restart is bound by reading the weights, which a batch reads once, and a batch by arithmetic. Each turn is several steps
in a row: a batch pushes the weights out of the cache, which a single step of the side after it would pay for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.descent import Descent
from benchmarks.layer_map_step import by_hand
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Outcome, Settings

RESTARTS = 32
GOAL = 5.0
STEPS = 10


def several(step: Callable[[], None]) -> Callable[[], None]:
    """The step, several times in a row."""

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


def run(settings: Settings) -> Outcome:
    """Time a step of one restart and a step of all in turns."""
    subject = gpt2()
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
    layer_map = subject.layer_map("block.0")
    embeddings = subject.embed(input_ids)
    with torch.no_grad():
        target = layer_map(embeddings)
    start = embeddings + 0.1 * torch.randn(RESTARTS, TOKENS, subject.width, generator=generator)
    by_hand_map = by_hand(subject.model, blocks=1)
    one, many, many_by_hand = "1 restart", f"{RESTARTS} restarts", f"{RESTARTS} restarts by hand"
    one_by_hand = "1 restart by hand"
    sides = [
        Side(one, "probekit", several(Descent(layer_map, start[:1], target).step)),
        Side(many, "probekit", several(Descent(layer_map, start, target).step)),
        Side(one_by_hand, "floor", several(Descent(by_hand_map, start[:1], target).step)),
        Side(many_by_hand, "floor", several(Descent(by_hand_map, start, target).step)),
    ]
    timings = alternate(sides, settings.rounds(40), warmup=settings.rounds(4))
    outcome = Outcome("Restarts as one batch")
    outcome.time(f"one block, {TOKENS} tokens, {STEPS} steps", sides, timings)
    outcome.figure(f"{many} / {one}", timings.ratio(many, one), GOAL)
    outcome.figure(f"{many_by_hand} / {one_by_hand}", timings.ratio(many_by_hand, one_by_hand))
    outcome.figure(f"{many} / {many_by_hand}", timings.ratio(many, many_by_hand))
    return outcome
