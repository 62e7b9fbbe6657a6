"""The floor: positions and blocks called one by one, without any hook; nothing else is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model


class ByHand:
    """Written for one family of models: with learnt positions that are added, or with rotary ones for each block."""

    title = "by hand"
    role: Role = "floor"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self._ids = input_ids
        self._embed = model.embedding_of(model.module)
        self._blocks = model.blocks_of(model.module)
        body = model.body_of(model.module)
        places = torch.arange(input_ids.shape[1])[None]
        self._learnt = getattr(body, "wpe", None)
        self._places = places
        # What the blocks compute in: embeddings may be in fp32 beside a model that is not.
        self._dtype = self._embed.weight.dtype
        self._given: dict[str, Any] = {}
        if self._learnt is None:
            like = self._embed(input_ids)
            self._given = {"position_embeddings": body.rotary_emb(like, position_ids=places)}

    def layer_map(self, blocks: int) -> Map:
        chain = list(self._blocks[:blocks])

        def call(embeddings: torch.Tensor) -> torch.Tensor:
            hidden = self._start(embeddings)
            for block in chain:
                hidden = block(hidden, **self._given)
            return hidden

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        chain = list(self._blocks[: max(blocks) + 1])

        def call() -> list[torch.Tensor]:
            with torch.no_grad():
                hidden = self._start(self._embed(self._ids))
                found = []
                for place, block in enumerate(chain):
                    hidden = block(hidden, **self._given)
                    if place in blocks:
                        found.append(hidden)
                return found

        return call

    def _start(self, embeddings: torch.Tensor) -> torch.Tensor:
        hidden = embeddings.to(self._dtype)
        return hidden if self._learnt is None else hidden + self._learnt(self._places)
