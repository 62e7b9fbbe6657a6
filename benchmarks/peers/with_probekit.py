"""probekit as a user calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model


class WithProbekit:
    """A layer map that is made once and called again and again."""

    title = "probekit"
    role: Role = "probekit"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self._subject, self._ids = model.subject, input_ids

    def layer_map(self, blocks: int) -> Map:
        return self._subject.layer_map(f"block.{blocks - 1}")

    def capture(self, blocks: Sequence[int]) -> Capture:
        sites = [f"block.{block}" for block in blocks]
        return lambda: list(self._subject.capture(self._ids, sites).values())


class Afresh(WithProbekit):
    """A layer map that is made anew for each call: what one costs that is called once."""

    title = "probekit, new map each step"

    def layer_map(self, blocks: int) -> Map:
        return lambda embeddings: self._subject.layer_map(f"block.{blocks - 1}")(embeddings)
