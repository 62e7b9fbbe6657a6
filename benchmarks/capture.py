"""Activations of a prompt of 5 tokens, without gradients: of a block in the middle, and of every one; by every side."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.comparison import Prepare, Prepared, compare
from benchmarks.layer_map_step import prompt
from benchmarks.outcome import Outcome, Settings
from benchmarks.peers import Peer, sides
from benchmarks.shapes import SHAPES

ROUNDS = 30


def capturing(blocks: Sequence[int]) -> Prepare:
    """How a side makes a capture ready."""

    def prepare(peer: Peer) -> Prepared:
        capture = peer.capture(blocks)
        return Prepared(capture, [each.detach() for each in capture()])

    return prepare


def run(settings: Settings) -> Outcome:
    """Every side, on every shape, at one site and at all."""
    outcome = Outcome("Capturing activations")
    for shape in SHAPES:
        with shape.model(settings.quick) as model:
            peers = sides(model, prompt(model))
            half = model.depth // 2
            works = {f"block {half} of {model.depth}": [half - 1], "every block": range(model.depth)}
            for named, blocks in works.items():
                work = f"{shape.name}, {named}"
                compare(outcome, work, peers, capturing(blocks), settings.rounds(ROUNDS), settings.rounds(3))
    return outcome
