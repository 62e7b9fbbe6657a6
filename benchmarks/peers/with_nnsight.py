"""nnsight: a trace that sets the embedding's output, saves what was asked for, and stops.

`NNsight` around the model that is there already is its thinnest wrapper; `tracer.stop()` is its way to end early.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
from nnsight import NNsight, save

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model


class WithNnsight:
    """Traces of nnsight."""

    role: Role = "peer"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self.title = f"nnsight {version('nnsight')}"
        self._ids = input_ids
        # It replaces the `forward` of every module for good.
        self._wrapped = NNsight(model.own())
        body = getattr(self._wrapped, model.body)
        self._embedding, self._blocks = getattr(body, model.embedding), getattr(body, model.blocks)

    def layer_map(self, blocks: int) -> Map:
        wrapped, embedding, site = self._wrapped, self._embedding, self._blocks[blocks - 1]

        def call(embeddings: torch.Tensor) -> torch.Tensor:
            ids = self._ids.expand(len(embeddings), -1)
            with wrapped.trace(ids, use_cache=False) as tracer:
                embedding.output = embeddings
                activation = site.output.save()
                tracer.stop()
            found: torch.Tensor = activation
            return found

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        wrapped, ids = self._wrapped, self._ids
        sites = [self._blocks[block] for block in blocks]

        def call() -> list[torch.Tensor]:
            with torch.no_grad(), wrapped.trace(ids, use_cache=False) as tracer:
                found = save([])
                for site in sites:
                    found.append(site.output)
                tracer.stop()
            return list(found)

        return call
