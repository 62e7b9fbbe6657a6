"""Batches of prompts: each prompt once, bounded, the same each time, and never more than a window of them held."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.activations import BATCH_TOKENS, Batching
from probekit.activations.batching import WINDOW, Mix

LENGTHS = st.lists(st.integers(1, 60), max_size=120)
MIXES: list[Mix] = ["any", "one length", "one prompt"]


def of_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """A prompt of each length, told apart by its first token."""
    return [[number] * length for number, length in enumerate(lengths)]


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(0, 200), st.sampled_from(MIXES))
def test_every_prompt_is_in_one_batch_under_its_number(lengths: list[int], tokens: int, mix: Mix) -> None:
    prompts = of_lengths(lengths)
    batches = list(Batching(tokens, mix).batches(prompts))
    assert all(batches), "no batch is empty"
    flat = [numbered for batch in batches for numbered in batch]
    assert sorted(flat) == list(enumerate(prompts))


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(0, 200), st.sampled_from(MIXES))
def test_no_batch_has_more_tokens_than_allowed_but_one_prompt_alone(lengths: list[int], tokens: int, mix: Mix) -> None:
    for batch in Batching(tokens, mix).batches(of_lengths(lengths)):
        padded = len(batch) * max(len(ids) for _, ids in batch)
        assert padded <= tokens or len(batch) == 1
        if mix == "one length":
            assert len({len(ids) for _, ids in batch}) == 1
        if mix == "one prompt":
            assert len(batch) == 1


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 200), st.integers(0, 2**16))
def test_what_is_in_which_batch_depends_on_lengths_alone(lengths: list[int], tokens: int, token: int) -> None:
    one, other = (
        [[number for number, _ in batch] for batch in Batching(tokens).batches(prompts)]
        for prompts in (of_lengths(lengths), [[token] * length for length in lengths])
    )
    assert one == other


def test_batches_are_as_full_as_they_may_be() -> None:
    """The next prompt of a window would not have fitted: no batch is cut short for nothing."""
    batches = list(Batching(100).batches(of_lengths([7, 30, 3, 50, 12, 99, 100, 1, 1, 8])))
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * len(following[0][1]) > 100


def test_prompts_of_like_lengths_go_together() -> None:
    """Long and short in turns would be padded to twice the tokens; sorted, hardly any padding is computed."""
    batches = list(Batching(256).batches(of_lengths([1, 63] * 200)))
    padded = sum(len(batch) * max(len(ids) for _, ids in batch) for batch in batches)
    assert padded < 1.05 * 200 * 64


@pytest.mark.parametrize("mix", MIXES)
def test_no_prompts_make_no_batches(mix: Mix) -> None:
    assert list(Batching(10, mix).batches([])) == []


def test_a_million_prompts_are_never_held() -> None:
    drawn = 0

    def prompts() -> Iterator[list[int]]:
        nonlocal drawn
        for number in range(1_000_000):
            drawn = number + 1
            yield [number] * (1 + number % 5)

    batches = Batching().batches(prompts())
    assert drawn == 0, "nothing is read before it is asked for"
    seen = 0
    tracemalloc.start()
    try:
        for batch in islice(batches, 100):
            assert drawn - seen <= WINDOW, "at most one window is read ahead"
            seen += len(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen > 20 * WINDOW
    assert peak < 2_000_000


@pytest.mark.slow
def test_all_of_a_million_prompts_come_once() -> None:
    seen = bytearray(1_000_000)
    for batch in Batching().batches([number] * (1 + number % 5) for number in range(1_000_000)):
        assert len(batch) * max(len(ids) for _, ids in batch) <= BATCH_TOKENS
        for number, _ in batch:
            seen[number] += 1
    assert seen == b"\1" * 1_000_000


def test_an_endless_stream_is_batched_as_it_comes() -> None:
    def endless() -> Iterator[list[int]]:
        while True:
            yield [1, 2]

    assert [len(batch) for batch in islice(Batching(20).batches(endless()), 3)] == [10, 10, 10]
