"""32 restarts as one batch: against one restart, and by every side. GPT-2, one block, 5 tokens each.

How much more 32 take than one is measured for probekit, by hand, and for the block's matrix products alone, forward
and back to their input: one restart is bound by reading the weights, which a batch reads once, and a batch by
arithmetic, so that the ratio is the machine's. Each turn is several steps in a row: a batch pushes the weights out of
the cache, which a single step of the side after it would pay for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.comparison import compare
from benchmarks.descent import several
from benchmarks.layer_map_step import descending, prompt
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS
from benchmarks.outcome import Outcome, Settings
from benchmarks.peers import Absent, Model, sides
from benchmarks.shapes import GPT2

RESTARTS = 32
GOAL = 4.5
STEPS = 10
# Steps in a row, by every side: some go through all blocks.
FEW = 2
PRODUCTS = "matrix products alone"


def products(model: Model, restarts: int) -> Callable[[], None]:
    """The products of a block with its matrices, forward and back: no attention, no norm, nothing is added."""
    block = model.blocks_of(model.module)[0]
    weights = [block.attn.c_attn.weight, block.attn.c_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight]
    generator = torch.Generator().manual_seed(0)
    rows = restarts * TOKENS
    pairs = [
        (
            weight.detach(),
            torch.randn(rows, weight.shape[0], generator=generator),
            torch.randn(rows, weight.shape[1], generator=generator),
        )
        for weight in weights
    ]

    def step() -> None:
        for weight, given, gradient in pairs:
            torch.mm(given, weight)
            torch.mm(gradient, weight.T)

    return step


def run(settings: Settings) -> Outcome:
    """One restart and all of them in turns, then all of them by every side."""
    outcome = Outcome("Restarts as one batch")
    with GPT2.model(settings.quick) as model:
        peers = sides(model, prompt(model))
        against_one(outcome, model, settings)
        work = f"{RESTARTS} restarts, one block"
        prepare = descending(model, prompt(model), 1, RESTARTS, FEW)
        compare(outcome, work, peers, prepare, settings.rounds(20), settings.rounds(2))
    return outcome


def against_one(outcome: Outcome, model: Model, settings: Settings) -> None:
    """How many times as long as one restart all of them take."""
    measured = []
    for peer in sides(model, prompt(model), ["by hand", "probekit"]):
        assert not isinstance(peer, Absent)
        for restarts in (1, RESTARTS):
            prepared = descending(model, prompt(model), 1, restarts, STEPS)(peer)
            measured.append(Side(_named(restarts, peer.title), peer.role, prepared.step))
    for restarts in (1, RESTARTS):
        step = several(products(model, restarts), STEPS)
        measured.append(Side(_named(restarts, PRODUCTS), "floor", step))
    timings = alternate(measured, settings.rounds(40), warmup=settings.rounds(4))
    outcome.time(f"one block, {TOKENS} tokens, {STEPS} steps", measured, timings)
    for way in ("probekit", "by hand", PRODUCTS):
        ratio = timings.ratio(_named(RESTARTS, way), _named(1, way))
        goal = GOAL if way == "probekit" else None
        outcome.figure(f"{RESTARTS} restarts / 1 restart: {way}", ratio, goal)


def _named(restarts: int, way: str) -> str:
    return f"{restarts} restart{'s' if restarts > 1 else ''}, {way}"
