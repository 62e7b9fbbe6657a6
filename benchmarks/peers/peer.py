"""What a benchmark asks of each side, and what a side is given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

import probekit
from benchmarks.measure import Role

Map = Callable[[torch.Tensor], torch.Tensor]
Capture = Callable[[], Sequence[torch.Tensor]]


class NotPossibleError(Exception):
    """A side cannot do a work; the message says why, in one sentence."""


@dataclass(frozen=True)
class Model:
    """A model of transformers with frozen weights, and what a script that is written for it knows of it.

    `body` is the module path of what stands below the head, `blocks` and `embedding` are paths below that. `folder`
    has its config, for peers that want to read one.
    """

    subject: probekit.Subject
    folder: str
    body: str
    blocks: str
    embedding: str

    @property
    def module(self) -> Any:
        """The model itself: with its head, and shared by all sides, so that none may change it."""
        return self.subject.model

    @property
    def depth(self) -> int:
        return len(self.subject.anatomy.blocks)

    def own(self) -> Any:
        """Modules of a side's own, with the same weights: for a peer that replaces or wraps what it is given."""
        return copy.deepcopy(self.module, {id(weight): weight for weight in self.module.parameters()})

    def body_of(self, module: Any) -> Any:
        """What stands below the head."""
        return module.get_submodule(self.body)

    def blocks_of(self, module: Any) -> Any:
        """The list of blocks."""
        return self.body_of(module).get_submodule(self.blocks)

    def embedding_of(self, module: Any) -> Any:
        """The embedding of tokens."""
        return self.body_of(module).get_submodule(self.embedding)


class Peer(Protocol):
    """One side, set up on one model and one prompt. Raises NotPossibleError for what it cannot do."""

    title: str
    role: Role

    def layer_map(self, blocks: int) -> Map:
        """From embeddings `[batch, sequence, d]` to the activation after so many blocks, with gradients."""
        ...

    def capture(self, blocks: Sequence[int]) -> Capture:
        """The activations of these blocks, numbered from 0 upwards, for the prompt; without gradients."""
        ...


@dataclass(frozen=True)
class Absent:
    """A side that is left out of everything, and why."""

    title: str
    reason: str
    role: Role = "peer"
    failed: bool = False
