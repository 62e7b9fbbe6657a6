"""Texts continued token by token, against transformers' own loop and against the distribution; and batches in order."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import probekit
from probekit.testing import tiny_subject
from probekit_plugins.continued import continued, until_end
from probekit_plugins.order import Order

IDS = torch.tensor([[5, 9, 20], [1, 2, 3], [0, 7, 7], [40, 41, 0]])
P = torch.tensor([0.5, 0.3, 0.15, 0.05])


def following(subject: probekit.Subject, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = subject.model(input_ids=ids).logits[:, -1]
    return logits


def same_for_all(ids: torch.Tensor) -> torch.Tensor:
    return P.log().expand(len(ids), -1)


def scripted(*rows: list[int]) -> torch.Tensor:
    """Two texts, begun by one token each, that are continued by these."""
    table = torch.tensor(rows)

    def next_logits(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(table[:, ids.shape[1] - 1], 10).float()

    return continued(next_logits, torch.zeros(len(rows), 1, dtype=torch.long), table.shape[1], 3)


def test_greedily_as_transformers_does_it() -> None:
    subject = tiny_subject(seed=2)
    probe = continued(lambda ids: following(subject, ids), IDS, 12, None)
    # A token that ends some texts early and others not.
    last = next(t for t, n in Counter(probe[:, 5].tolist()).items() if n < len(IDS))
    for end in (None, last):
        found = continued(lambda ids: following(subject, ids), IDS, 12, end)
        expected = subject.model.generate(  # type: ignore[operator]
            IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=0 if end is None else end,
        )
        assert torch.equal(found, expected)


def test_after_its_end_a_text_is_filled_and_the_loop_stops_when_all_have_ended() -> None:
    found = scripted([5, 3, 6, 7, 8], [5, 6, 7, 3, 9])
    assert found.tolist() == [[0, 5, 3, 3, 3], [0, 5, 6, 7, 3]]
    assert [until_end(row, 3) for row in found[:, 1:].tolist()] == [[5], [5, 6, 7]]


def test_an_end_that_stands_before_a_text_ends_nothing() -> None:
    found = continued(same_for_all, torch.tensor([[0, 3]]), 4, 3)
    assert found.tolist() == [[0, 3, 0, 0, 0, 0]]
    assert until_end([3, 1, 3], None) == [3, 1, 3]
    assert until_end([1, 2], 3) == [1, 2]
    assert until_end([], 3) == []


def test_no_steps_and_no_texts_are_given_back() -> None:
    assert torch.equal(continued(same_for_all, IDS, 0, 3), IDS)
    assert len(continued(same_for_all, IDS[:0], 4, 3)) == 0


def test_samples_follow_the_distribution_and_the_seed() -> None:
    ids = torch.zeros(4000, 1, dtype=torch.long)

    def sampled(seed: int, end: int | None = None) -> torch.Tensor:
        return continued(same_for_all, ids, 3, end, torch.Generator().manual_seed(seed))

    found = sampled(0)
    assert torch.equal(found, sampled(0))
    assert not torch.equal(found, sampled(1))
    for place in (1, 2, 3):
        shares = torch.bincount(found[:, place], minlength=4) / 4000
        assert (shares - P).abs().max() < 5 * (0.25 / 4000) ** 0.5
    together = ((found[:, 1] == 0) & (found[:, 2] == 0)).float().mean()
    assert float(together) == pytest.approx(0.25, abs=0.035), "one step says nothing of the next"
    ended = sampled(0, end=0)
    shares = (ended[:, 1:] == 0).float().mean(0)
    assert torch.allclose(shares, torch.tensor([0.5, 0.75, 0.875]), atol=0.04)
    assert bool(((ended[:, 1:] == 0).int().diff(dim=1) >= 0).all()), "what has ended stays so"


def test_the_callers_random_state_and_gradients_stay_as_they_are() -> None:
    subject = tiny_subject()
    weight = subject.model.get_parameter("transformer.wte.weight").requires_grad_(True)
    before = torch.get_rng_state()
    found = continued(lambda ids: following(subject, ids), IDS, 2, 0, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert weight.grad is None
    assert not found.requires_grad


@pytest.mark.parametrize("seed", [None, 0])
def test_logits_that_are_nan_are_a_sentence_and_minus_infinity_is_never_chosen(seed: int | None) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with pytest.raises(probekit.AnalysisError, match="NaN"):
        continued(lambda ids: torch.full((len(ids), 4), torch.nan), IDS, 2, None, generator)
    barred = torch.tensor([0.0, -torch.inf, 0.0, 0.0])
    found = continued(lambda ids: barred.expand(len(ids), -1), IDS.expand(4, -1), 20, None, generator)
    assert 1 not in found[:, 3:]


@pytest.mark.parametrize(("count", "size"), [(10, 5), (10, 3), (7, 7), (3, 8), (1, 4), (11, 1)])
def test_every_example_is_seen_once_an_epoch_each_time_in_another_order(count: int, size: int) -> None:
    order = Order(count, 5)
    seen = torch.cat([order.batch(number, size) for number in range(count * 4)])
    assert all(len(order.batch(number, size)) == size for number in range(3))
    epochs = seen[: len(seen) // count * count].view(-1, count)
    assert all(epoch.sort().values.tolist() == list(range(count)) for epoch in epochs)
    if count >= 7:
        assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


def test_a_batch_is_the_same_whatever_was_asked_for_before() -> None:
    whole = [Order(10, 3).batch(number, 4) for number in range(12)]
    order = Order(10, 3)
    for number in (11, 0, 7, 7, 2, 11):
        assert torch.equal(order.batch(number, 4), whole[number])
    assert any(not torch.equal(Order(10, 4).batch(number, 4), whole[number]) for number in range(3))


@pytest.mark.parametrize("seed", [0, 2**62 - 1])
def test_seeds_as_they_are_drawn_go_on_for_many_epochs(seed: int) -> None:
    order = Order(3, seed)
    assert order.batch(2**40, 3).sort().values.tolist() == [0, 1, 2]
