"""One server of processes for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kill.harness import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    started = Forks()
    yield started
    started.close()
