"""Pytest fixtures for a plugin's tests: `pytest_plugins = ["probekit.testing.fixtures"]` in its `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from probekit import testing

if TYPE_CHECKING:
    from probekit.subject import Subject


@pytest.fixture(name="tiny_subject")
def tiny_subject_fixture() -> Subject:
    """`probekit.testing.tiny_subject()`: a tiny GPT-2 of random weights, a new one for each test."""
    return testing.tiny_subject()


@pytest.fixture(name="hostile_subject")
def hostile_subject_fixture() -> Subject:
    """The same with a tokenizer that says hostile texts for tokens."""
    return testing.tiny_subject(hostile=True)


@pytest.fixture(name="check_analysis")
def check_analysis_fixture() -> Callable[..., None]:
    """`check_analysis(MyAnalysis, steps=2)`: fails with a sentence for each promise of an analysis that is broken."""
    return testing.check_analysis
