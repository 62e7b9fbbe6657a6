"""Examples to train on: documents are held out whole and by what is in them; memory is bounded and draws evenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from probekit import ActivationBatch, AnalysisError
from probekit_plugins.examples import Collection, Examples


def batch(documents: Sequence[Sequence[int]], first: int = 0, width: int = 3) -> ActivationBatch:
    """The activation of token t at position p of document n is (t, p, n)."""
    longest = max(map(len, documents))
    mask = torch.tensor([[place < len(ids) for place in range(longest)] for ids in documents])
    ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in documents])
    numbers = torch.arange(first, first + len(documents))
    places = torch.arange(longest).expand_as(ids)
    values = torch.stack([ids, places, numbers[:, None].expand_as(ids)], -1).float()
    values = torch.cat([values, torch.zeros(*ids.shape, width - 3)], -1).masked_fill(~mask[..., None], 0)
    return ActivationBatch(
        {"a": values, "b": -values}, ids, mask, numbers, lambda given: [f"t{each}" for each in given]
    )


def collected(
    documents: Sequence[Sequence[int]],
    views: Any = "token",
    sites: Sequence[str] = ("a",),
    parts: int = 1,
    **given: Any,
) -> Examples:
    settings = {"skip_first": 1, "held_out": 0.2, "held_out_tokens": 10_000, "memory": 2.0**20} | given
    collection = Collection(views, generator=torch.Generator().manual_seed(0), **settings)
    size = -(-len(documents) // parts) or 1
    for first in range(0, len(documents), size):
        collection.add(batch(documents[first : first + size], first), list(sites))
    return collection.end()


DOCUMENTS = [[100 * number + place for place in range(4 + number % 3)] for number in range(30)]


def test_whole_documents_are_held_out_and_no_example_of_them_is_trained_on() -> None:
    found = collected(DOCUMENTS)
    held = {document.number for document in found.held_out}
    assert len(held) == 6
    assert set(found.about[:, 2].tolist()) == set(range(30)) - held
    assert len(found.training) + len(found.held) == sum(len(ids) - 1 for ids in DOCUMENTS)
    assert found.seen == len(found.training)


def test_what_is_known_of_an_example_is_what_it_was() -> None:
    found = collected(DOCUMENTS)
    assert torch.equal(found.training[:, 0].long(), found.about)
    assert torch.equal(found.held[:, 0].long(), torch.cat([document.about for document in found.held_out]))
    assert found.about[:, 1].min() == 1, "position 0 is left out"


def test_the_same_documents_are_held_out_whatever_the_order_and_the_batches() -> None:
    texts = {tuple(document.ids) for document in collected(DOCUMENTS, parts=7).held_out}
    assert texts == {tuple(document.ids) for document in collected(DOCUMENTS[::-1]).held_out}


def test_a_document_that_is_there_twice_is_never_on_both_sides() -> None:
    found = collected([*DOCUMENTS, *DOCUMENTS])
    held = {tuple(document.ids) for document in found.held_out}
    trained = {tuple(DOCUMENTS[number % 30]) for number in found.about[:, 2].tolist()}
    assert held
    assert not held & trained


def test_a_document_that_went_to_the_training_is_not_held_out_when_it_comes_again() -> None:
    long = [[1000 + place for place in range(60)]]
    met = 0
    for number in range(20):
        # Where its digest is the greater: 18 copies do not fit, go to the training, and leave room for two more.
        short = [[10 * number + place for place in range(8)]]
        found = collected([*long, *short * 20], held_out=0.9, held_out_tokens=100)
        assert len(found.held_out) in (1, 20), "the long one, or all copies of the other"
        met += len(found.held_out) == 1
    assert met


def test_documents_without_an_example_take_no_place_among_those_held_out() -> None:
    for first in range(20):
        short = [[first * 100 + number] for number in range(40)]
        found = collected([*short, [1, 2, 3], [4, 5, 6]], held_out=0.01)
        assert len(found.held_out) == 1
        assert len(found.training) == 2


def test_few_tokens_are_held_out_of_many_documents() -> None:
    found = collected(DOCUMENTS * 20, held_out_tokens=40)
    assert len({tuple(document.ids) for document in found.held_out}) == 1, "all its copies, and no other"
    many = [[1000 * number + place for place in range(5)] for number in range(2000)]
    assert 40 <= sum(len(document.ids) for document in collected(many, held_out_tokens=50, parts=40).held_out) <= 50


def test_of_more_examples_than_fit_each_has_the_same_chance() -> None:
    many = [[10 * number + place for place in range(9)] for number in range(1000)]
    found = collected(many, memory=12.0 * 400, held_out=0.01, parts=50)
    assert len(found.training) == 400
    assert found.seen > 7000
    numbers = found.about[:, 2].double()
    assert abs(float(numbers.mean()) - 500) < 60, "early documents are kept no more often than late ones"
    assert len(set(map(tuple, found.about.tolist()))) == 400


def test_batches_go_through_all_examples_before_any_comes_again() -> None:
    found = collected(DOCUMENTS)
    count = len(found.training)
    rows = torch.cat([found.batch(number, 7, seed=3) for number in range(3 * count)])
    for epoch in range(20):
        assert sorted(rows[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))
    assert not torch.equal(rows[:count], rows[count : 2 * count])


def test_a_batch_does_not_depend_on_those_that_were_asked_for_before() -> None:
    asked = collected(DOCUMENTS)
    for number in (0, 40, 3):
        assert torch.equal(asked.batch(number, 11, seed=1), collected(DOCUMENTS).batch(number, 11, seed=1))
    assert not torch.equal(asked.batch(0, 11, seed=1), asked.batch(0, 11, seed=2))


def test_a_token_at_two_sites_is_two_views() -> None:
    found = collected(DOCUMENTS, "sites", ("a", "b"))
    assert found.training.shape[1:] == (2, 3)
    assert torch.equal(found.training[:, 0], -found.training[:, 1])


def test_the_halves_of_a_document_are_two_views() -> None:
    found = collected([[1, 10, 20, 30, 40], [2, 3], [5], *DOCUMENTS], "segments")
    both = {int(about[2]): views for views, about in zip(found.training, found.about, strict=True)}
    both |= {document.number: document.examples[0] for document in found.held_out if len(document.examples)}
    assert both[0][:, 0].tolist() == [15, 35]
    assert 1 not in both, "one token is left, which has no two halves"
    assert 2 not in both


@pytest.mark.parametrize("documents", [[], [[1, 2, 3]], [[1], [2], [3]]])
def test_too_little_is_a_sentence(documents: list[list[int]]) -> None:
    with pytest.raises(AnalysisError, match=r"nothing is left to (train on|measure by); give more and longer prompts"):
        collected(documents)


def test_an_activation_that_is_not_finite_is_a_sentence() -> None:
    collection = Collection("token", 0, 0.1, 100, 1e6, torch.Generator())
    broken = batch(DOCUMENTS[:3])
    broken.activations["a"][1, 2, 0] = float("inf")
    with pytest.raises(AnalysisError, match="at a is NaN or infinite, first at position 2 of prompt 2"):
        collection.add(broken, ["a"])
