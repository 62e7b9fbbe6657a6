"""A step of the layer map in bfloat16 and in int8: probekit against the blocks called by hand in the same precision.

GPT-2, 5 tokens, one restart, embeddings in fp32; int8 is LLM.int8(), whose layers only bitsandbytes computes.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.comparison import compare
from benchmarks.layer_map_step import ALL, ONE, descending, prompt
from benchmarks.outcome import Outcome, Settings
from benchmarks.peers import sides
from benchmarks.shapes import GPT2

PRECISIONS: Mapping[str, Mapping[str, str]] = {"bfloat16": {"dtype": "bfloat16"}, "int8": {"quantization": "int8"}}
SIDES = ("by hand", "probekit", "bare hooks")


def run(settings: Settings) -> Outcome:
    """Each precision, through one block and through all."""
    outcome = Outcome("A step in bfloat16 and int8")
    for precision, options in PRECISIONS.items():
        with GPT2.model(settings.quick, **options) as model:
            input_ids = prompt(model)
            peers = sides(model, input_ids, SIDES)
            for blocks, (steps, rounds, goal) in ((1, ONE), (model.depth, ALL)):
                work = f"{precision}, one block" if blocks == 1 else f"{precision}, all {blocks} blocks"
                prepare = descending(model, input_ids, blocks, steps=steps)
                compare(outcome, work, peers, prepare, settings.rounds(rounds), settings.rounds(5), goal)
    return outcome
