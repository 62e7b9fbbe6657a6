"""The baselines of the exact inverter: each gives the prompt back, with counts that its description allows, or says
that it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from benchmarks.inversion_baselines import Recovered, page_descent, prefix_scan, sipit

VOCABULARY = 50
PROMPT = torch.tensor([[7, 31, 7, 0, 49, 12]])
SITES = ["block.0", "block.-1"]


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=2, n_embd=32, n_head=2, vocab_size=VOCABULARY, n_positions=16, bos_token_id=0, eos_token_id=0
        )
        return probekit.Subject(GPT2LMHeadModel(config))


def activations(subject: probekit.Subject, site: str, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    return subject.capture(prompt, [site])[site][0]


def descend(subject: probekit.Subject, target: torch.Tensor, schedules: tuple[int, ...]) -> Recovered:
    generator = torch.Generator().manual_seed(0)
    return page_descent(subject, "block.0", target, generator=generator, prompt=PROMPT, schedules=schedules, seconds=8)


@pytest.mark.parametrize("site", SITES)
def test_the_scan_forwards_every_token_up_to_the_batch_with_the_match(subject: probekit.Subject, site: str) -> None:
    found = prefix_scan(subject, site, activations(subject, site), prompt=PROMPT, rows=1)
    batches = [max(1, 512 // length) for length in range(1, PROMPT.shape[1] + 1)]
    expected = [
        min(VOCABULARY, (token // batch + 1) * batch) for token, batch in zip(PROMPT[0].tolist(), batches, strict=True)
    ]
    assert found.exact
    assert found.reached
    assert found.candidates == tuple(expected)
    assert found.tokens == sum(length * count for length, count in enumerate(expected, start=1))
    assert found.steps == 0


@pytest.mark.parametrize("site", SITES)
def test_sipit_checks_no_token_twice_and_takes_a_step_for_each(subject: probekit.Subject, site: str) -> None:
    found = sipit(subject, site, activations(subject, site), prompt=PROMPT)
    assert found.exact
    assert found.reached
    assert all(1 <= checked <= VOCABULARY for checked in found.candidates)
    assert found.steps == sum(found.candidates)
    # One row for the first gradient, two for each check but the last, whose own gradient is not taken.
    expected = sum(length * (1 + 2 * checked) for length, checked in enumerate(found.candidates, start=1))
    assert found.tokens == expected


def test_sipit_is_exhaustive_where_its_steps_lead_nowhere(subject: probekit.Subject) -> None:
    """Steps of no length propose the tokens around the mean embedding, the nearest first."""
    found = sipit(subject, "block.0", activations(subject, "block.0"), prompt=PROMPT, step=0.0)
    matrix = subject.embedding_matrix
    nearest = (matrix - matrix.mean(0)).norm(dim=1).argsort().tolist()
    assert found.exact
    assert found.candidates == tuple(nearest.index(token) + 1 for token in PROMPT[0].tolist())


@pytest.mark.parametrize("method", [prefix_scan, sipit])
def test_an_activation_of_no_token_is_not_reached_after_the_whole_vocabulary(
    subject: probekit.Subject, method: Callable[..., Recovered]
) -> None:
    target = activations(subject, "block.0")
    target[3] *= 1.5
    found = method(subject, "block.0", target, prompt=PROMPT)
    assert not found.reached
    assert found.exact is False
    assert found.ids == tuple(PROMPT[0, :3].tolist())
    assert len(found.candidates) == 4
    assert found.candidates[3] == VOCABULARY


def test_the_descent_stops_at_the_first_tokens_that_have_the_activation(subject: probekit.Subject) -> None:
    found = descend(subject, activations(subject, "block.0"), (300, 1000))
    assert found.exact
    assert found.reached
    assert found.steps % 10 == 0
    assert found.steps < 1300
    assert set(found.candidates) == {found.candidates[0]}
    assert found.candidates[0] <= found.steps // 10
    assert found.tokens == (found.steps + found.candidates[0]) * PROMPT.shape[1]


def test_the_descent_does_not_claim_what_it_did_not_reach(subject: probekit.Subject) -> None:
    found = descend(subject, activations(subject, "block.0"), (2, 3))
    assert not found.reached
    assert found.exact is False
    assert found.steps == 5
    assert len(found.ids) == PROMPT.shape[1]


def test_what_is_exact_is_not_said_where_the_prompt_is_not_told(subject: probekit.Subject) -> None:
    found = sipit(subject, "block.0", activations(subject, "block.0"))
    assert found.exact is None
    assert found.reached
    assert found.ids == tuple(PROMPT[0].tolist())


@pytest.mark.parametrize("method", [prefix_scan, sipit, descend])
def test_a_baseline_leaves_the_model_as_it_was(
    subject: probekit.Subject,
    method: Callable[..., Recovered],
    assert_untouched: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    target = activations(subject, "block.0")
    with assert_untouched(subject.model):
        if method is descend:
            descend(subject, target, (20,))
        else:
            method(subject, "block.0", target)
