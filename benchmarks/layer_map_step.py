"""One step of a descent through the first block, and through all twelve: GPT-2 124 M, 5 tokens, one restart.

Floor: the blocks called by hand, without any hook. Peers: the bare script that everyone writes, with one hook that
replaces the embeddings and one that stops by an exception; nnsight, where it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.descent import Descent
from benchmarks.measure import Side, alternate
from benchmarks.models import TOKENS, gpt2
from benchmarks.outcome import Outcome, Settings

Map = Callable[[torch.Tensor], torch.Tensor]

# Blocks, rounds, goal against the hand-written loop.
DEPTHS = ((1, 1000, 1.05), (12, 200, 1.01))
GOAL_AGAINST_HOOKS = 1.02


class Stop(BaseException):
    """Ends the forward pass of the bare script."""


def by_hand(model: Any, blocks: int) -> Map:
    """The floor: position embeddings and blocks called one by one; nothing else is done."""
    transformer = model.transformer
    positions = torch.arange(TOKENS)[None]

    def call(embeddings: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = embeddings + transformer.wpe(positions)
        for block in transformer.h[:blocks]:
            hidden = block(hidden)
        return hidden

    return call


def bare_hooks(model: Any, blocks: int, input_ids: torch.Tensor) -> Map:
    """The script without a tool: embeddings replaced by a hook, activation read by another, stopped by an exception."""
    site = model.transformer.h[blocks - 1]

    def call(embeddings: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def substitute(_module: nn.Module, _inputs: Any, _output: Any) -> torch.Tensor:
            return embeddings

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.append(output)
            raise Stop

        first = model.transformer.wte.register_forward_hook(substitute)
        second = site.register_forward_hook(stop)
        try:
            model(input_ids=input_ids, use_cache=False)
        except Stop:
            pass
        finally:
            first.remove()
            second.remove()
        return found[0]

    return call


def by_nnsight(model: Any, blocks: int, input_ids: torch.Tensor) -> Map:
    """The same through nnsight: a trace that sets the embedding's output, saves the block's and stops."""
    from nnsight import NNsight  # type: ignore[import-not-found, unused-ignore]

    # It replaces the `forward` of every module for good, so it gets modules of its own, with the same weights.
    wrapped = NNsight(copy.deepcopy(model, {id(weight): weight for weight in model.parameters()}))
    site = wrapped.transformer.h[blocks - 1]

    def call(embeddings: torch.Tensor) -> torch.Tensor:
        with wrapped.trace(input_ids, use_cache=False) as tracer:
            wrapped.transformer.wte.output = embeddings
            activation = site.output.save()
            tracer.stop()
        found: torch.Tensor = activation
        return found

    return call


def run(settings: Settings) -> Outcome:
    """Time every side at both depths, and check that all of them went the same way, bit for bit."""
    outcome = Outcome("A step of the layer map")
    subject = gpt2()
    model: Any = subject.model
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
    start = subject.embed(input_ids) + 0.1 * torch.randn(1, TOKENS, subject.width, generator=generator)
    with_nnsight = find_spec("nnsight") is not None
    for blocks, rounds, goal in DEPTHS:
        label = "one block" if blocks == 1 else f"{blocks} blocks"
        site = f"block.{blocks - 1}"
        layer_map = subject.layer_map(site)

        def afresh(embeddings: torch.Tensor, site: str = site) -> torch.Tensor:
            return subject.layer_map(site)(embeddings)

        maps: list[tuple[str, Any, Map]] = [
            ("by hand", "floor", by_hand(model, blocks)),
            ("two bare hooks", "peer", bare_hooks(model, blocks, input_ids)),
            ("probekit", "probekit", layer_map),
            ("probekit, a new map each step", "probekit", afresh),
        ]
        if with_nnsight:
            maps.append((f"nnsight {version('nnsight')}", "peer", by_nnsight(model, blocks, input_ids)))
        with torch.no_grad():
            target = layer_map(subject.embed(input_ids))
        descents = {name: Descent(call, start, target) for name, _, call in maps}
        sides = [Side(name, role, descents[name].step) for name, role, _ in maps]
        timings = alternate(sides, settings.rounds(rounds), warmup=settings.rounds(20))
        for name, descent in descents.items():
            if not torch.equal(descent.embeddings, descents["by hand"].embeddings):
                raise RuntimeError(f"'{name}' did other work than 'by hand': their embeddings differ at {site}.")
        outcome.time(label, sides, timings)
        outcome.figure(f"{label}: probekit / by hand", timings.ratio("probekit", "by hand"), goal)
        outcome.figure(
            f"{label}: probekit / two bare hooks", timings.ratio("probekit", "two bare hooks"), GOAL_AGAINST_HOOKS
        )
        for name in [name for name, _, _ in maps if name not in ("by hand", "probekit")]:
            outcome.figure(f"{label}: {name} / by hand", timings.ratio(name, "by hand"))
    outcome.notes.append("All sides ended at the same embeddings, bit for bit.")
    if not with_nnsight:
        outcome.notes.append("nnsight is not installed, so it was left out; `pip install nnsight` adds it as a peer.")
    return outcome
