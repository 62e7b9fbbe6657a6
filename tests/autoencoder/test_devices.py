"""A model on one device, an autoencoder on another: the same bits."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests import second_device
from tests.autoencoder.placed import figures, sparse

pytestmark = pytest.mark.skipif(not second_device.is_possible(), reason="torch takes no devices made in Python")


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process that has more devices; one for all tests, since it imports torch for itself."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), second_device.register) as process:
        yield process


def test_devices_do_not_matter(process: ProcessPoolExecutor) -> None:
    on_cpu = process.submit(figures, "cpu", "cpu").result()
    assert on_cpu[0]["plain"]["tokens"] == 9
    for pair in (("twin:0", "twin:0"), ("twin:0", "cpu"), ("cpu", "twin:1"), ("twin:0", "twin:1")):
        assert process.submit(figures, *pair).result() == on_cpu, pair


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="SAELens is not installed")
def test_a_sparse_one_is_trained_where_the_model_is(process: ProcessPoolExecutor) -> None:
    assert process.submit(sparse, "twin:0").result() == process.submit(sparse, "cpu").result()
