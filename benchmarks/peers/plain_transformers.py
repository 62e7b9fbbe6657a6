"""transformers alone: `output_hidden_states=True`, on `inputs_embeds` where embeddings are given.

It goes through every block, whichever was asked for. The model below the head is called, which spares the logits. Its
last hidden state is that after the final norm, so the norm is taken out of a copy: else the last block has no reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model


class PlainTransformers:
    """Hidden states as transformers returns them, from the embeddings (0) to the last block."""

    role: Role = "peer"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self.title = f"transformers {version('transformers')}"
        self._ids = input_ids
        # Asking for hidden states leaves hooks in the modules for good.
        self._body = model.body_of(model.own())
        norm = next(name for name in ("ln_f", "norm") if hasattr(self._body, name))
        setattr(self._body, norm, nn.Identity())

    def layer_map(self, blocks: int) -> Map:
        def call(embeddings: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self._states(inputs_embeds=embeddings)[blocks]
            return found

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        def call() -> list[torch.Tensor]:
            with torch.no_grad():
                states = self._states(input_ids=self._ids)
            return [states[block + 1] for block in blocks]

        return call

    def _states(self, **given: torch.Tensor) -> Any:
        return self._body(**given, output_hidden_states=True, use_cache=False).hidden_states
