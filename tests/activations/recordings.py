"""What the tests of recordings share: prompts, calls that record them, and what a folder holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from probekit.activations import Recording, Storage, write
from probekit.subject import Subject

SITES = "block.0,block.-1,norm"


def made_up(count: int, seed: int = 0, longest: int = 12, vocabulary: int = 60) -> list[list[int]]:
    """Prompts of many lengths."""
    draw = random.Random(seed)
    return [[draw.randrange(1, vocabulary) for _ in range(draw.randint(1, longest))] for _ in range(count)]


PROMPTS = made_up(40)
# So small that there are several batches in a shard, and several shards.
SMALL = Storage(shard_bytes=20_000, batch_tokens=24)


def record_ids(
    subject: Subject,
    path: Path,
    prompts: Iterable[Sequence[int]] = PROMPTS,
    sites: str = SITES,
    storage: Storage = SMALL,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **origin: Any,
) -> Recording:
    return write(subject, lambda: prompts, sites, path, origin=origin, storage=storage, progress=progress)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Stopped(Exception):  # noqa: N818
    """What a test ends a call with, in the middle."""


def stop_after(shards: int) -> Callable[[int, int], None]:
    """A listener that ends the call when so many shards are done."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == shards:
            raise Stopped

    return progress
