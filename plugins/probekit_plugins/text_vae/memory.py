"""Memory: one more position among the keys and values of each block, for a model to attend to.

`W_M z` is split into one vector for each block; it is both the key and the value of that position, which stands before
all tokens (Li et al., 2020, section 3.2). Keys have the model's own shape: heads that share keys (grouped-query
attention) share the memory's as well, and no rotation is applied to it. Where keys and values differ in width, the
shorter is the first part of the longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from probekit import UsageError, out_of_memory


@dataclass(frozen=True)
class Slot:
    """What a block keeps of one position: `heads` keys of width `key`, as many values of width `value`."""

    heads: int
    key: int
    value: int

    @property
    def size(self) -> int:
        """Entries of its memory."""
        return self.heads * max(self.key, self.value)


@dataclass(frozen=True)
class Memory:
    """The slots of a model's blocks, by their place in its cache: None for a block that keeps nothing of this kind."""

    slots: tuple[Slot | None, ...]

    @property
    def size(self) -> int:
        """Entries of all memories together."""
        return sum(slot.size for slot in self.slots if slot is not None)

    def cache(self, vectors: torch.Tensor) -> DynamicCache:
        """A cache with one position, from `[batch, size]`; differentiable."""
        cache, at = DynamicCache(), 0
        for layer, slot in enumerate(self.slots):
            if slot is None:
                continue
            part = vectors[:, at : at + slot.size].view(len(vectors), slot.heads, 1, -1)
            at += slot.size
            cache.update(part[..., : slot.key], part[..., : slot.value], layer)
        return cache


def memory_of(call: Callable[[torch.Tensor, DynamicCache], Any], ids: torch.Tensor, what: str) -> Memory:
    """The memory of a model that is called with token ids and a cache; `ids` are any `[1, n ≥ 2]`.

    Found by a pass that fills a cache. Raises UsageError if the model keeps no keys and values there, or does not read
    what is put among them.
    """
    sentence = (
        f"{what} keeps no keys and values that a memory could stand among; give z to its embeddings "
        "(-o injection=embedding)."
    )
    try:
        with torch.no_grad():
            cache = DynamicCache()
            plain = call(ids, cache)
            memory = Memory(tuple(_slot(layer, ids.shape[1]) for layer in cache.layers))
            if not memory.size or memory.slots[0] is None:  # a cache's length, and so every mask, is its first's
                raise UsageError(sentence)
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(2, memory.size, generator=generator).to(plain)
            one, other = call(ids.expand(2, -1), memory.cache(drawn))
    except UsageError:
        raise
    except Exception as error:  # it takes no cache, or none of that kind
        if out_of_memory(error):
            raise
        raise UsageError(sentence) from error
    if one.shape != plain.shape[1:] or torch.allclose(one, other):
        raise UsageError(sentence)
    return memory


def _slot(layer: Any, positions: int) -> Slot | None:
    if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
        return None
    keys, values = layer.keys, layer.values
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[2] != positions:
        return None
    return Slot(keys.shape[1], keys.shape[3], values.shape[3])
