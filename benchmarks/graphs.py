"""A step in a CUDA graph against the same step by hooks: GPT-2 124 M and gpt2-xl's shape, in fp32, bf16 and int8.

The yardstick beside them is reading the weights twice, once forward and once backward: a step of one row can do no
less. Each turn is several steps, and the device is waited for at its end. Without a CUDA device nothing is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config

import probekit
from benchmarks.descent import LEARNING_RATE
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS
from benchmarks.outcome import Outcome, Settings

STEPS = 20
SHAPES = {
    "GPT-2 124 M": GPT2Config(),
    "gpt2-xl's shape": GPT2Config(n_layer=48, n_embd=1600, n_head=25),
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "int8": {"quantization": "int8", "dtype": "bfloat16"},
}
RESTARTS = (1, 256)
# For GPT-2 124 M in fp32 at one row.
GOAL_OVER_EAGER = 5.0
GOAL_OVER_READING = 8.0
GOAL_COMPILED_OVER_READING = 4.0


class Step:
    """`e ← e − η ∇‖O(e) − t‖₁` in place, through every block."""

    def __init__(self, subject: probekit.Subject, restarts: int) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
        self._layer_map = subject.layer_map("block.-1", repeated=True)
        embeddings = subject.embed(ids).float()
        with torch.no_grad():
            self._target = self._layer_map(embeddings)
        noise = torch.randn(restarts, TOKENS, subject.width, generator=generator).to(embeddings)
        self.embeddings = (embeddings + 0.1 * noise).requires_grad_(True)

    def __call__(self) -> torch.Tensor:
        loss = (self._layer_map(self.embeddings) - self._target).abs().float().sum((1, 2))
        (gradient,) = torch.autograd.grad(loss.sum(), self.embeddings)
        with torch.no_grad():
            self.embeddings.sub_(gradient, alpha=LEARNING_RATE)
        return loss.detach()


def waited(step: Callable[[], object]) -> Callable[[], None]:
    """Some steps in a row, and the device's end of them."""

    def steps() -> None:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()

    return steps


def reading(subject: probekit.Subject) -> Callable[[], object]:
    """The bytes of all blocks, read twice."""
    size = sum(weight.nbytes for block in subject.anatomy.blocks for weight in block.parameters())
    weights = torch.zeros(size // 4, dtype=torch.float32, device=subject.device)

    def twice() -> None:
        weights.sum()
        weights.sum()

    return twice


def load(config: GPT2Config, **options: Any) -> probekit.Subject:
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return probekit.load(folder, weights="random", weights_seed=0, device="cuda", **options)


def run(settings: Settings) -> Outcome:
    """Time every precision of both shapes."""
    outcome = Outcome("A step in a CUDA graph")
    if not torch.cuda.is_available():
        outcome.notes.append("Not measured: there is no CUDA device here.")
        return outcome
    for shape, config in SHAPES.items():
        for precision, options in PRECISIONS.items():
            subject, compiled = load(config, **options), load(config, compile=True, **options)
            for restarts in RESTARTS:
                measure(outcome, settings, f"{shape}, {precision}, {restarts} rows", subject, compiled, restarts)
    return outcome


def measure(
    outcome: Outcome,
    settings: Settings,
    label: str,
    subject: probekit.Subject,
    compiled: probekit.Subject,
    restarts: int,
) -> None:
    """The sides of one work, in turns."""
    steps = [Step(subject, restarts), Step(subject, restarts), Step(compiled, restarts)]
    eager, graphed, both = steps
    captured = subject.repeated(graphed, lambda: [graphed.embeddings])
    captured_compiled = compiled.repeated(both, lambda: [both.embeddings])
    sides = [
        Side("weights read twice", "floor", waited(reading(subject))),
        Side("by hooks", "probekit", waited(eager)),
        Side("in a graph", "probekit", waited(captured)),
        Side("compiled, in a graph", "probekit", waited(captured_compiled)),
    ]
    timings = alternate(sides, settings.rounds(50), warmup=settings.rounds(5))
    outcome.time(f"{label}, {STEPS} steps", sides, timings)
    first = label == "GPT-2 124 M, fp32, 1 rows"
    outcome.figure(
        f"{label}: by hooks / in a graph",
        timings.ratio("by hooks", "in a graph"),
        GOAL_OVER_EAGER if first else None,
        "higher",
    )
    for side, goal in (("in a graph", GOAL_OVER_READING), ("compiled, in a graph", GOAL_COMPILED_OVER_READING)):
        outcome.figure(
            f"{label}: {side} / weights read twice", timings.ratio(side, "weights read twice"), goal if first else None
        )
    for name, step in (("in a graph", captured), ("compiled, in a graph", captured_compiled)):
        if not getattr(step, "replays", False):
            outcome.notes.append(f"{label}, {name}: not captured; it would differ, or waits for figures.")
    if not torch.equal(eager.embeddings, graphed.embeddings):
        outcome.failures.append(f"{label}: the graph went another way than the hooks.")
