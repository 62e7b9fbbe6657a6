"""A step of a descent through one block, and through all: forward, L1 loss, backward to the embeddings, update.

5 tokens, one restart; GPT-2, a Llama and a Mixture of Experts; by every side. At one block a turn is several steps in
a row, as a descent is: what the side before has left in the cache is then paid for once.
"""

from __future__ import annotations

import torch

from benchmarks.comparison import Prepare, Prepared, compare
from benchmarks.descent import Descent, several
from benchmarks.models import TOKENS
from benchmarks.outcome import Outcome, Settings
from benchmarks.peers import Model, Peer, sides
from benchmarks.peers.with_probekit import Afresh
from benchmarks.shapes import SHAPES, Shape

# Through how much: steps in a row, rounds, goal against the floor.
ONE, ALL = (3, 60, 1.05), (1, 30, 1.02)


def prompt(model: Model) -> torch.Tensor:
    """Random tokens, the same each time."""
    return torch.randint(0, model.subject.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def starts(model: Model, input_ids: torch.Tensor, restarts: int = 1) -> torch.Tensor:
    """Where the restarts begin: the prompt's embeddings with noise on them."""
    generator = torch.Generator().manual_seed(1)
    return model.subject.embed(input_ids) + 0.1 * torch.randn(
        restarts, TOKENS, model.subject.width, generator=generator
    )


def descending(model: Model, input_ids: torch.Tensor, blocks: int, restarts: int = 1, steps: int = 1) -> Prepare:
    """How a side makes a descent ready; what it comes to are the activation at the start and a gradient through it."""
    start = starts(model, input_ids, restarts)
    with torch.no_grad():
        target = model.subject.layer_map(f"block.{blocks - 1}")(model.subject.embed(input_ids))

    def prepare(peer: Peer) -> Prepared:
        layer_map = peer.layer_map(blocks)
        embeddings = start.clone().requires_grad_(True)
        activation = layer_map(embeddings)
        slope = torch.linspace(-1, 1, activation.numel(), dtype=activation.dtype).view_as(activation)
        (gradient,) = torch.autograd.grad(activation, embeddings, slope)
        descent = Descent(layer_map, start, target)
        return Prepared(several(descent.step, steps), [activation.detach(), gradient], lambda: descent.embeddings)

    return prepare


def run(settings: Settings) -> Outcome:
    """Every side, on every shape, through one block and through all."""
    outcome = Outcome("A step of the layer map")
    for shape in SHAPES:
        one_shape(outcome, shape, settings)
    return outcome


def one_shape(outcome: Outcome, shape: Shape, settings: Settings) -> None:
    """The steps through one shape."""
    with shape.model(settings.quick) as model:
        input_ids = prompt(model)
        peers = sides(model, input_ids)
        peers.insert(2, Afresh(model, input_ids))
        for blocks, (steps, rounds, goal) in ((1, ONE), (model.depth, ALL)):
            work = f"{shape.name}, one block" if blocks == 1 else f"{shape.name}, all {blocks} blocks"
            prepare = descending(model, input_ids, blocks, steps=steps)
            compare(outcome, work, peers, prepare, settings.rounds(rounds), settings.rounds(5), goal)
    outcome.notes.append(f"{shape.name}: {'a small one of its kind' if settings.quick else shape.described}.")
