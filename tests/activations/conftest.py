"""A tiny subject and a recording of it, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import probekit
from probekit.activations import Recording
from tests.activations.recordings import record_ids


@pytest.fixture(scope="session")
def subject(tiny_gpt2: Callable[..., Path]) -> probekit.Subject:
    """A GPT-2 of three blocks. Tests leave it as it is."""
    return probekit.load(tiny_gpt2())


@pytest.fixture(scope="session")
def recorded(subject: probekit.Subject, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording of several shards. Copy its folder before changing a file."""
    return record_ids(subject, tmp_path_factory.mktemp("recorded") / "recording")


@pytest.fixture
def copied(recorded: Recording, tmp_path: Path) -> Path:
    """A copy of that recording to change."""
    return Path(shutil.copytree(recorded.path, tmp_path / "copied"))


@pytest.fixture
def passes(subject: probekit.Subject) -> Iterator[Callable[[], list[tuple[int, ...]]]]:
    """`passes()`: the shapes of what went into the first block since the last call, one for each forward pass."""
    seen: list[tuple[int, ...]] = []
    hook = subject.anatomy.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))

    def since() -> list[tuple[int, ...]]:
        found = list(seen)
        seen.clear()
        return found

    yield since
    hook.remove()
