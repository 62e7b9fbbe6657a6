"""Memory while many prompts are recorded and read: no more for two thousand than for two hundred."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import probekit
from probekit.activations import LiveActivations, Recording, Storage
from tests.activations.recordings import made_up, record_ids

STORAGE = Storage(shard_bytes=60_000, batch_tokens=64)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, of those that were made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, tuple[object, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._alive:
                    size = storage.nbytes()
                    self._alive[key] = (weakref.ref(storage, partial(self._gone, key)), size)
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return returned

    def _gone(self, key: int, _: object) -> None:
        self.now -= self._alive.pop(key)[1]


@contextmanager
def measured() -> Iterator[LiveBytes]:
    gc.collect()
    with LiveBytes() as bytes_:
        yield bytes_


def prompts(count: int) -> list[list[int]]:
    return made_up(200) * (count // 200)


def record_and_read(subject: probekit.Subject, folder: Path, given: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """The peaks of recording, of reading in batches, and of a live pass."""
    with measured() as recording:
        record_ids(subject, folder, given, "blocks,logits", STORAGE)
    with measured() as reading:
        for batch in Recording(folder).batches(["block.0", "logits"]):
            batch.rows("logits")
    with measured() as live:
        source = LiveActivations(subject, lambda: given, len(given), STORAGE.batch_tokens)
        for batch in source.batches(["block.0", "logits"]):
            batch.rows("logits")
    return recording.peak, reading.peak, live.peak


def test_ten_times_the_prompts_take_no_more_memory(subject: probekit.Subject, tmp_path: Path) -> None:
    record_and_read(subject, tmp_path / "warm", prompts(200))
    few = record_and_read(subject, tmp_path / "few", prompts(200))
    many = record_and_read(subject, tmp_path / "many", prompts(2000))
    assert min(few) > 10_000, "something is measured"
    for name, one, other in zip(("recording", "reading", "live"), few, many, strict=True):
        assert other < 1.25 * one, name
    assert many[0] < 3 * STORAGE.shard_bytes + 200_000
