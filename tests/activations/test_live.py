"""Activations from a model in batches: each prompt has what it has alone, for one forward pass a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

import probekit
from probekit.activations import ActivationBatch, LiveActivations
from probekit.errors import UsageError
from tests.activations.recordings import PROMPTS, made_up
from tests.forward.tiny import FIRST_PLAIN_ID, VOCABULARY, named

Shapes = Callable[[], list[tuple[int, ...]]]


def live(subject: probekit.Subject, prompts: Sequence[Sequence[int]] = PROMPTS, **bounds: int) -> LiveActivations:
    return LiveActivations(subject, lambda: prompts, len(prompts), **bounds)


@cache
def architecture(name: str) -> probekit.Subject:
    return probekit.Subject(named(name))


def plain_prompts(count: int) -> list[list[int]]:
    """Prompts without special tokens, for the tiny architectures."""
    return [
        [FIRST_PLAIN_ID + index % (VOCABULARY - FIRST_PLAIN_ID) for index in ids]
        for ids in made_up(count, seed=1, longest=6)
    ]


def assert_as_alone(
    subject: probekit.Subject,
    batches: Sequence[ActivationBatch],
    prompts: Sequence[Sequence[int]],
    sites: Sequence[str],
    **tolerance: float,
) -> None:
    """Every prompt once, with the activations that `capture` gives it alone, and zero beyond its end."""
    assert sorted(int(number) for batch in batches for number in batch.prompts) == list(range(len(prompts)))
    for batch in batches:
        assert batch.sites == list(sites)
        for row, number in enumerate(batch.prompts.tolist()):
            ids = prompts[number]
            assert batch.input_ids[row, : len(ids)].tolist() == list(ids)
            assert batch.mask[row].tolist() == [position < len(ids) for position in range(batch.mask.shape[1])]
            assert not batch.input_ids[row, len(ids) :].any()
            alone = subject.capture(torch.tensor([ids]), sites)
            for site in sites:
                torch.testing.assert_close(batch[site][row, : len(ids)], alone[site][0], **tolerance)
                assert not batch[site][row, len(ids) :].any(), "padding is zero"


def test_each_prompt_has_what_it_has_alone(subject: probekit.Subject) -> None:
    sites = ["embedding", "block.0", "transformer.h.1.mlp.c_fc", "block.2", "norm", "logits"]
    batches = list(live(subject, batch_tokens=40).batches(sites))
    assert len(batches) > 5
    assert any(not batch.mask.all() for batch in batches), "some are padded"
    assert_as_alone(subject, batches, PROMPTS, sites, rtol=1e-5, atol=1e-6)


def test_in_double_precision_it_is_the_same_to_the_last_digits(tiny_gpt2: Any) -> None:
    subject = probekit.load(tiny_gpt2(), dtype="float64")
    batches = list(live(subject, PROMPTS[:12]).batches(["block.0", "block.2"]))
    assert {batch["block.0"].dtype for batch in batches} == {torch.float64}
    assert_as_alone(subject, batches, PROMPTS[:12], ["block.0", "block.2"], rtol=1e-12, atol=1e-13)


def test_rows_are_the_prompts_own_tokens_with_their_index(subject: probekit.Subject) -> None:
    seen: dict[int, list[int]] = {}
    for batch in live(subject, batch_tokens=60).batches(["block.1"]):
        rows = batch.rows("block.1")
        assert rows.shape == (int(batch.mask.sum()), 32)
        index = zip(batch.row_prompts.tolist(), batch.positions.tolist(), batch.row_ids.tolist(), strict=True)
        for row, (prompt, position, token) in zip(rows, index, strict=True):
            assert PROMPTS[prompt][position] == token
            seen.setdefault(prompt, []).append(position)
            in_batch = batch.prompts.tolist().index(prompt)
            assert torch.equal(row, batch["block.1"][in_batch, position])
        assert batch.tokens() == [subject.tokens(PROMPTS[number]) for number in batch.prompts.tolist()]
    assert seen == {number: list(range(len(ids))) for number, ids in enumerate(PROMPTS)}


# --- what a model takes in one batch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpmant", "prophetnet"])
def test_a_model_that_refuses_padding_gets_prompts_of_one_length(name: str) -> None:
    subject, prompts = architecture(name), plain_prompts(14)
    assert not subject.takes_padding(["block.-1"])
    batches = list(live(subject, prompts).batches(["block.-1"]))
    assert all(batch.mask.all() for batch in batches)
    assert len(batches) == len({len(ids) for ids in prompts}), "those of one length go together"
    assert_as_alone(subject, batches, prompts, ["block.-1"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "roberta", "xlnet", "gemma3n_text", "mamba", "reformer", "xlm"])
def test_models_of_other_kinds_give_each_prompt_what_it_has_alone(name: str) -> None:
    subject, prompts = architecture(name), plain_prompts(9)
    batches = list(live(subject, prompts).batches(["block.0", "block.-1"]))
    assert len(batches) == 1
    assert_as_alone(subject, batches, prompts, ["block.0", "block.-1"], rtol=1e-4, atol=1e-5)


def test_a_site_that_is_the_same_for_all_prompts_is_read_one_prompt_at_a_time(subject: probekit.Subject) -> None:
    """GPT-2's position embedding returns [1, sequence, width], however many prompts there are."""
    prompts = PROMPTS[:6]
    batches = list(live(subject, prompts).batches(["transformer.wpe", "block.0"]))
    assert [len(batch.prompts) for batch in batches] == [1] * 6
    assert_as_alone(subject, batches, prompts, ["transformer.wpe", "block.0"], rtol=1e-5, atol=1e-6)


@pytest.fixture
def flat(tiny_gpt2: Any) -> probekit.Subject:
    """A model with a module that returns one vector for a whole prompt."""
    from transformers import AutoModelForCausalLM

    class Pooled(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.mean(1)

    class Pooling(torch.nn.Module):
        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.block, self.pooled = block, Pooled()

        def forward(self, hidden: torch.Tensor, *given: Any, **named: Any) -> Any:
            self.pooled(hidden)
            return self.block(hidden, *given, **named)

    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2())
    model.transformer.h[1] = Pooling(model.transformer.h[1])
    return probekit.Subject(model)


def test_a_site_without_a_vector_for_each_token_is_refused_by_name_and_shape(flat: probekit.Subject) -> None:
    batch = next(iter(live(flat, [[1, 2, 3], [4, 5, 6]]).batches(["transformer.h.1.pooled", "block.0"])))
    for read in (batch.__getitem__, batch.rows, lambda site: batch.only([site])):
        with pytest.raises(UsageError) as refused:
            read("transformer.h.1.pooled")
        sentence = "The site 'transformer.h.1.pooled' returns [2, 32] for prompts [2, 3]; choose one with a vector for "
        assert str(refused.value).startswith(sentence)
    assert batch["block.0"].shape == (2, 3, 32)


def test_a_site_that_was_not_asked_for_is_refused_with_those_that_are_there(subject: probekit.Subject) -> None:
    batch = next(iter(live(subject).batches(["block.0", "norm"])))
    with pytest.raises(UsageError, match=r"^The batch has no site 'block\.1'; it has: block\.0, norm\.$"):
        batch["block.1"]


def test_copies_of_a_batch_may_be_written_into(subject: probekit.Subject) -> None:
    batch = next(iter(live(subject).batches(["block.0", "norm"])))
    kept = batch["norm"].clone(), batch.input_ids.clone(), batch.mask.clone(), batch.prompts.clone()
    own = batch.only(["norm"])
    assert own.sites == ["norm"]
    for tensor in (own["norm"], own.input_ids, own.prompts, own.mask):
        tensor.zero_()
    for now, was in zip((batch["norm"], batch.input_ids, batch.mask, batch.prompts), kept, strict=True):
        assert torch.equal(now, was)


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_a_batch_is_one_forward_pass_that_stops_at_the_deepest_site(subject: probekit.Subject, passes: Shapes) -> None:
    source = live(subject, batch_tokens=50)
    list(source.batches(["block.1", "block.0"]))  # what is measured about the model is measured once
    expected = [(len(batch), max(len(ids) for _, ids in batch)) for batch in source.batches_of_prompts(["block.0"])]
    deeper: list[int] = []
    hooks = [block.register_forward_pre_hook(lambda *_: deeper.append(1)) for block in subject.anatomy.blocks[2:]]
    passes()
    try:
        batches = list(source.batches(["block.1", "block.0"]))
    finally:
        for hook in hooks:
            hook.remove()
    assert [shape[:2] for shape in passes()] == expected == [tuple(batch.mask.shape) for batch in batches]
    assert deeper == [], "nothing past the deepest site is computed"


def test_a_pass_leaves_nothing_on_the_model_even_if_nobody_takes_its_last_batch(
    subject: probekit.Subject, assert_untouched: Any
) -> None:
    with assert_untouched(subject.model):
        next(live(subject, batch_tokens=50).batches(["block.1", "block.0"]))


def test_batches_are_computed_one_by_one_as_they_are_asked_for(subject: probekit.Subject, passes: Shapes) -> None:
    source = live(subject, batch_tokens=50)
    list(source.batches(["block.0"]))
    passes()
    batches = source.batches(["block.0"])
    for number in range(1, 4):
        next(batches)
        assert len(passes()) == 1, number


def test_wide_activations_make_small_batches(subject: probekit.Subject) -> None:
    source = live(subject, batch_bytes=4 * (300 + 32) * 12)
    for batch in source.batches(["logits", "block.0"]):
        assert batch.mask.numel() <= 12 or len(batch.prompts) == 1
    assert len(list(live(subject).batches_of_prompts(["logits"]))) == 1


def test_sites_wider_than_all_blocks_together_make_smaller_batches(subject: probekit.Subject) -> None:
    def longest(*sites: str) -> int:
        batches = live(subject, batch_bytes=4 * 128 * 20).batches_of_prompts(list(sites))
        return max(len(batch) for batch in batches)

    wide = [f"transformer.h.{index}.mlp.c_fc" for index in range(2)]
    assert longest(*wide) < longest("block.0") == longest("block.0", "block.1")


# --- memory that runs out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("most", [1, 3, 7])
def test_memory_that_runs_out_halves_a_batch_and_gives_the_same_rows(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch, error: Exception, most: int
) -> None:
    expected = list(live(subject).batches(["block.0", "norm"]))
    capture, taken = subject.capture, []

    def scarce(ids: torch.Tensor, *given: Any) -> Any:
        if len(ids) > most:
            raise error
        taken.append(len(ids))
        return capture(ids, *given)

    monkeypatch.setattr(subject, "capture", scarce)
    found = list(live(subject).batches(["block.0", "norm"]))
    assert sum(taken) == len(PROMPTS)
    assert all(most >= size > (most - 1) / 2 for size in taken), "halved, and no more often than it has to be"
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.prompts, other.prompts)
        assert torch.equal(one.input_ids, other.input_ids)
        for site in ("block.0", "norm"):
            torch.testing.assert_close(one[site], other[site], rtol=1e-5, atol=1e-6)


def test_one_prompt_that_does_not_fit_is_the_error_that_it_was(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(subject, "capture", scarce)
    with pytest.raises(MemoryError):
        list(live(subject).batches(["block.0"]))


def test_another_error_is_no_reason_to_try_again(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(*_: Any) -> Any:
        calls.append(1)
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(subject, "capture", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        list(live(subject).batches(["block.0"]))
    assert calls == [1]


def test_a_prompt_that_the_model_does_not_take_is_a_sentence(subject: probekit.Subject) -> None:
    for prompts, part in (([[1], []], "no tokens"), ([[10**9]], "outside the vocabulary"), ([[1] * 33], "33 tokens")):
        with pytest.raises(UsageError, match=part):
            list(live(subject, prompts).batches(["block.0"]))


def test_the_same_batches_come_each_time(subject: probekit.Subject) -> None:
    source = live(copy.copy(subject), batch_tokens=50)
    for one, other in zip(source.batches(["block.2"]), source.batches(["block.2"]), strict=True):
        assert torch.equal(one.prompts, other.prompts)
        assert torch.equal(one["block.2"], other["block.2"])
