"""pyvene: an `IntervenableModel` that puts the embeddings in as a source, and collects what blocks return.

It has no way to stop, so a call goes through every block; it wraps the model below the head, which spares the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import pyvene
import torch

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model


class WithPyvene:
    """Interventions of pyvene, on modules of its own with the same weights."""

    role: Role = "peer"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self.title = f"pyvene {version('pyvene')}"
        self._ids = input_ids
        self._body = model.body_of(model.own())
        self._paths = model.embedding, model.blocks

    def layer_map(self, blocks: int) -> Map:
        embedding, block = self._paths
        source = pyvene.VanillaIntervention()
        given = {"component": f"{embedding}.output", "intervention": source}
        wrapped, (key, _) = self._wrapped([given, self._collecting(f"{block}[{blocks - 1}]")])

        def call(embeddings: torch.Tensor) -> torch.Tensor:
            base = {"input_ids": self._ids.expand(len(embeddings), -1), "use_cache": False}
            (_, found), _ = wrapped(base, source_representations={key: embeddings})
            activation: torch.Tensor = found[0]
            return activation

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        wrapped, _ = self._wrapped([self._collecting(f"{self._paths[1]}[{block}]") for block in blocks])
        base = {"input_ids": self._ids, "use_cache": False}

        def call() -> list[torch.Tensor]:
            with torch.no_grad():
                (_, found), _ = wrapped(base)
            return list(found)

        return call

    @staticmethod
    def _collecting(path: str) -> dict[str, Any]:
        return {"component": f"{path}.output", "intervention": pyvene.CollectIntervention()}

    def _wrapped(self, representations: list[dict[str, Any]]) -> tuple[Any, list[str]]:
        wrapped = pyvene.IntervenableModel(representations, model=self._body)
        return wrapped, list(wrapped.sorted_keys)
