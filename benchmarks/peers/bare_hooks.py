"""The script without a tool: one hook that replaces the embeddings, others that read, and an exception that stops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model


class Stop(BaseException):
    """Ends the forward pass."""


def read_block(model: Any, block: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """What a block returns for a prompt, without gradients and without what comes after it."""
    found: list[torch.Tensor] = []

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise Stop

    handle = block.register_forward_hook(stop)
    try:
        with torch.no_grad(), suppress(Stop):
            model(input_ids=input_ids, use_cache=False)
    finally:
        handle.remove()
    return found[0]


class BareHooks:
    """Hooks of PyTorch, put on for each call and taken off after it."""

    title = "bare hooks"
    role: Role = "peer"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self._model, self._ids = model.module, input_ids
        self._embedding = model.embedding_of(model.module)
        self._blocks = model.blocks_of(model.module)

    def layer_map(self, blocks: int) -> Map:
        site = self._blocks[blocks - 1]

        def call(embeddings: torch.Tensor) -> torch.Tensor:
            found: list[torch.Tensor] = []

            def substitute(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
                return embeddings.to(output.dtype)

            def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found.append(output)
                raise Stop

            first = self._embedding.register_forward_hook(substitute)
            second = site.register_forward_hook(stop)
            try:
                self._model(input_ids=self._ids, use_cache=False)
            except Stop:
                pass
            finally:
                first.remove()
                second.remove()
            return found[0]

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        last = max(blocks)

        def call() -> list[torch.Tensor]:
            found: list[torch.Tensor] = []

            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found.append(output)

            def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found.append(output)
                raise Stop

            with ExitStack() as hooks, torch.no_grad(), suppress(Stop):
                for block in blocks:
                    hook = stop if block == last else keep
                    hooks.callback(self._blocks[block].register_forward_hook(hook).remove)
                self._model(input_ids=self._ids, use_cache=False)
            return found

        return call
