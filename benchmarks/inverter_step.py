"""The gradient inverter's descent against the same descent by hand: all that an analysis does around its formula.

Adam on 1 and on 8 restarts of 5 tokens through one block of GPT-2. By hand, that is the loop alone; the analysis also
keeps every loss, records the embeddings at every 20th step, shows its progress and could be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import probekit
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Outcome, Settings
from probekit_plugins.gradient_inverter import GradientInverterOptions
from probekit_plugins.gradient_inverter.inversion import Inversion

RESTARTS = (1, 8)
STEPS = 40
SITE = "block.0"
GOAL = 1.05


def by_hand(subject: probekit.Subject, start: torch.Tensor, target: torch.Tensor, rate: float) -> Callable[[], object]:
    """`e ← Adam(e, ∇‖O(e) − t‖₁)`, with the block called as a function."""
    transformer = subject.model.get_submodule("transformer")
    [block, *_] = subject.anatomy.blocks
    shift = transformer.get_submodule("wpe")(torch.arange(TOKENS)[None])

    def descend() -> torch.Tensor:
        x = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x])
        for step in range(STEPS):
            losses = (block(x + shift) - target).abs().sum((1, 2))
            (x.grad,) = torch.autograd.grad(losses.sum(), x)
            optimizer.param_groups[0]["lr"] = rate * (1 - 0.9 * step / (STEPS - 1))
            optimizer.step()
        return x

    return descend


def run(settings: Settings) -> Outcome:
    """Time both, and check that they come to the same embeddings but for rounding."""
    outcome = Outcome("The inverter's own descent")
    subject = gpt2(depth=1)
    ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    prompt = probekit.Prompt("", ids, [str(index) for index in ids[0].tolist()])
    with torch.no_grad():
        target = subject.layer_map(SITE)(subject.embed(ids))
    for restarts in RESTARTS:
        options = GradientInverterOptions(sites=SITE, steps=STEPS, restarts=restarts, next_token=False)
        context = probekit.Context(0, "gradient-inverter")
        inversion = Inversion(subject, [prompt], SITE, None, options, context)
        rows = slice(0, restarts)
        hand = by_hand(subject, inversion.starts(rows), target, inversion.space.rate)

        def analysis(inversion: Inversion = inversion, rows: slice = rows) -> torch.Tensor:
            return inversion.descend_rows(rows, "benchmark").recorded[-1]

        torch.testing.assert_close(analysis(), hand(), rtol=1e-3, atol=1e-4)
        sides = [Side("by hand", "floor", hand), Side("the analysis", "probekit", analysis)]
        timings = alternate(sides, settings.rounds(30), warmup=settings.rounds(3))
        label = f"one block, {STEPS} steps, {'1 restart' if restarts == 1 else f'{restarts} restarts'}"
        outcome.time(label, sides, timings)
        outcome.figure(f"{label}: the analysis / by hand", timings.ratio("the analysis", "by hand"), GOAL)
    return outcome
