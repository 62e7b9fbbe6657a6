"""A descent at every block at once: rows of all sites in one pass a step, against one site after another.

GPT-2 124 M (12 blocks, 5 tokens) and the embedded model (6 blocks), with 1, 8 and 32 restarts at each site. Both sides
compute the same rows, each up to its site; what the pass saves is reading the weights once for each site, and calling
the blocks once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import probekit
from benchmarks.descent import LEARNING_RATE, Descent
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Outcome, Settings

RESTARTS = (1, 8, 32)
QUICK_DEPTH = 3
SHARED, AFTER_ANOTHER = "one pass", "one after another"


@dataclass(frozen=True)
class Sweep:
    """A model, by what makes it, and how many rounds its steps are timed."""

    name: str
    subject: Callable[[int | None], probekit.Subject]
    rounds: int


SWEEPS = (Sweep("GPT-2", gpt2, 5), Sweep("the embedded model", lambda depth: probekit.load("demo", depth=depth), 40))


class SharedDescent:
    """`Descent` at several sites, whose rows stand one site after another."""

    def __init__(self, maps: probekit.LayerMaps, start: torch.Tensor, targets: dict[str, torch.Tensor]) -> None:
        self._maps, self._targets = maps, targets
        self.embeddings = start.repeat(len(targets), 1, 1).requires_grad_(True)
        self._optimizer = torch.optim.SGD([self.embeddings], lr=LEARNING_RATE)

    def step(self) -> None:
        rows = self.embeddings.chunk(len(self._targets))
        found = self._maps(dict(zip(self._targets, rows, strict=True)))
        losses = [(found[site] - target).abs().sum() for site, target in self._targets.items()]
        (self.embeddings.grad,) = torch.autograd.grad(torch.stack(losses).sum(), self.embeddings)
        self._optimizer.step()


def run(settings: Settings) -> Outcome:
    """Time a step of all sites in both ways in turns."""
    outcome = Outcome("A sweep over every block")
    for sweep in SWEEPS:
        subject = sweep.subject(QUICK_DEPTH if settings.quick else None)
        for restarts in RESTARTS[:2] if settings.quick else RESTARTS:
            _compare(outcome, sweep, subject, restarts, settings)
    return outcome


def _compare(outcome: Outcome, sweep: Sweep, subject: probekit.Subject, restarts: int, settings: Settings) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = subject.embed(torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator))
    start = embeddings + 0.1 * torch.randn(restarts, TOKENS, subject.width, generator=generator)
    sites = subject.expand_sites("blocks")
    maps = {site: subject.layer_map(site) for site in sites}
    with torch.no_grad():
        targets = {site: layer_map(embeddings) for site, layer_map in maps.items()}
    alone = [Descent(maps[site], start, targets[site]) for site in sites]

    def one_after_another() -> None:
        for descent in alone:
            descent.step()

    shared = SharedDescent(subject.layer_maps(sites), start, targets)
    sides = [Side(AFTER_ANOTHER, "floor", one_after_another), Side(SHARED, "probekit", shared.step)]
    timings = alternate(sides, settings.rounds(sweep.rounds), warmup=settings.rounds(3))
    what = (
        f"{sweep.name}, {len(sites)} blocks, {restarts} {'restart' if restarts == 1 else 'restarts'} of {TOKENS} tokens"
    )
    outcome.time(what, sides, timings)
    outcome.figure(f"{what}: {SHARED} / {AFTER_ANOTHER}", timings.ratio(SHARED, AFTER_ANOTHER))
