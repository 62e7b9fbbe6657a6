"""Compiled blocks (`--compile`) against blocks as they are, on the CPU: what a step gains, and what compiling takes."""

from __future__ import annotations

import tempfile
import time

import torch
from transformers import GPT2Config

import probekit
from benchmarks.descent import Descent
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS
from benchmarks.outcome import Figure, Outcome, Settings

DEPTHS = (1, 12)
RESTARTS = (1, 8, 32)
# A layer map compiles at the third step, and records its route at the second.
FIRST_STEPS = 3


def load(depth: int, compiled: bool) -> probekit.Subject:
    """GPT-2 124 M, cut."""
    with tempfile.TemporaryDirectory() as folder:
        GPT2Config().save_pretrained(folder)
        return probekit.load(folder, weights="random", weights_seed=0, depth=depth, compile=compiled)


def run(settings: Settings) -> Outcome:
    """Time a step through one block and through twelve, with few rows and many."""
    outcome = Outcome("Compiled blocks")
    for depth in DEPTHS:
        plain, compiled = load(depth, compiled=False), load(depth, compiled=True)
        site = f"block.{depth - 1}"
        for restarts in RESTARTS:
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(0, plain.vocabulary, (1, TOKENS), generator=generator)
            embeddings = plain.embed(ids)
            start = embeddings + 0.1 * torch.randn(restarts, TOKENS, plain.width, generator=generator)
            with torch.no_grad():
                target = plain.layer_map(site)(embeddings)
            descents = {
                "blocks as they are": Descent(plain.layer_map(site), start, target),
                "compiled blocks": Descent(compiled.layer_map(site, repeated=True), start, target),
            }
            began = time.perf_counter()
            for _ in range(FIRST_STEPS):
                descents["compiled blocks"].step()
            seconds = time.perf_counter() - began
            sides = [
                Side("blocks as they are", "floor", descents["blocks as they are"].step),
                Side("compiled blocks", "probekit", descents["compiled blocks"].step),
            ]
            rounds = 400 // depth // (4 if restarts > 8 else 1)
            timings = alternate(sides, settings.rounds(max(rounds, 12)), warmup=settings.rounds(5))
            label = f"{'one block' if depth == 1 else f'{depth} blocks'}, {restarts} restarts"
            outcome.time(label, sides, timings)
            gain = timings.ratio("compiled blocks", "blocks as they are")
            outcome.figure(f"{label}: compiled / as they are", gain)
            outcome.figures.append(Figure(f"{label}: compiling, with {FIRST_STEPS} steps", seconds, unit="s"))
    outcome.notes.append(
        "What was compiled before is in torch's cache on disk: only the first run on a machine compiles all of it."
    )
    return outcome
