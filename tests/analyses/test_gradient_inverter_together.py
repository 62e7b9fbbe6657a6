"""Sites that share a pass: what each comes to, when they do, and what becomes of them when memory or a process ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import probekit
from probekit.analysis.context import State
from probekit.testing import prompts, tiny_subject
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions

SMALL: dict[str, Any] = {"steps": 6, "restarts": 2, "sites": "blocks", "record_every": 2, "next_token": False}
SHARED = "sites went through the blocks in one pass a step"


@pytest.fixture
def subject() -> probekit.Subject:
    return tiny_subject()


def inverted(
    subject: probekit.Subject,
    context: probekit.Context | None = None,
    texts: tuple[str, ...] = ("abcd",),
    **options: Any,
) -> probekit.Result:
    analysis = GradientInverter(GradientInverterOptions(**{**SMALL, **options}), context or probekit.Context())
    return analysis.run(subject, prompts(subject, *texts))


def shares(result: probekit.Result) -> bool:
    return any(SHARED in note for note in result.notes)


@pytest.mark.parametrize("texts", [("abcd",), ("abcd", "xy", "the end")], ids=["one prompt", "padded"])
@pytest.mark.parametrize("optimizer", ["adam", "descent"])
def test_each_site_comes_to_what_it_comes_to_alone(
    subject: probekit.Subject, optimizer: str, texts: tuple[str, ...]
) -> None:
    options = {"optimizer": optimizer, "learning_rate": 1e-3, "loss": "l2", "shift_sigma": [0.05, 0.1]}
    together = inverted(subject, texts=texts, share_pass="yes", **options)
    after_another = inverted(subject, texts=texts, share_pass="no", **options)
    assert shares(together)
    assert not shares(after_another)
    assert together.tensors.keys() == after_another.tensors.keys()
    for key, tensor in together.tensors.items():
        if key.endswith("losses"):
            torch.testing.assert_close(tensor, after_another.tensors[key], rtol=1e-4, atol=1e-4)
    for site in ("block.0", "block.2"):
        alone = inverted(subject, texts=texts, sites=site, **options)
        starts = [each.tensors[f"0/{site}/losses"][0] for each in (together, alone)]
        torch.testing.assert_close(*starts, rtol=1e-5, atol=1e-5)


def test_it_is_chosen_for_few_rows_at_several_blocks_and_the_same_each_time(subject: probekit.Subject) -> None:
    few = inverted(subject)
    assert shares(few)
    again = inverted(subject)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in few.tensors.items())
    for options in ({"restarts": 20}, {"sites": "block.1"}, {"sites": "block.0,norm"}, {"optimizer": "lbfgs"}):
        assert not shares(inverted(subject, **{"steps": 1, **options})), options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sites": "block.1"}, "there are several sites"),
        ({"sites": "block.1,logits"}, "each site is the output of a block"),
        ({"head": "model"}, "there is no head"),
        ({"dropout": True}, "there is no dropout"),
        ({"optimizer": "lbfgs"}, "the optimizer is not lbfgs"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_asked_for_where_it_cannot_be_it_is_a_sentence(subject: probekit.Subject, options: Any, reason: str) -> None:
    with pytest.raises(probekit.UsageError, match=f"only where {reason}"):
        inverted(subject, share_pass="yes", **options)


def test_the_comparison_with_the_page_is_a_run_of_the_page_here_too(subject: probekit.Subject) -> None:
    compared = inverted(subject, compare_page=True)
    page = inverted(subject, settings="page")
    assert shares(page)
    for site in ("block.0", "block.2"):
        wanted = page.tensors[f"0/{site}/losses"]
        assert torch.equal(compared.tensors[f"0/{site}/page/losses"], wanted)


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Blocks that take so many rows only; what they were given."""
    forward, seen = GPT2Block.forward, []

    def small(self: GPT2Block, hidden_states: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        seen.append(len(hidden_states))
        if len(hidden_states) > most:
            raise torch.OutOfMemoryError("on purpose")
        return forward(self, hidden_states, *arguments, **more)

    monkeypatch.setattr(GPT2Block, "forward", small)
    return seen


@pytest.mark.parametrize(("most", "still"), [(6, True), (3, True), (2, False)], ids=["all", "halves", "alone"])
def test_out_of_memory_it_halves_the_rows_and_then_goes_one_site_at_a_time(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch, most: int, still: bool
) -> None:
    wanted = inverted(subject, share_pass="no")
    seen = limited(monkeypatch, most)
    found = inverted(subject)
    assert shares(found) is still
    assert max(seen) == 6  # three sites, two restarts
    for site in ("block.0", "block.1", "block.2"):
        losses = found.tensors[f"0/{site}/losses"]
        torch.testing.assert_close(losses, wanted.tensors[f"0/{site}/losses"], rtol=1e-3, atol=1e-3)


class Kept:
    """A store that remembers, saves at every step, and asks to stop after some."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.steps = 0

    def read(self, kind: str, label: str) -> State | None:
        found = self.states.get(f"{kind}/{label}")
        return None if found is None else dict(found)

    def write(self, kind: str, label: str, state: State) -> None:
        self.states[f"{kind}/{label}"] = {name: tensor.detach().clone() for name, tensor in state.items()}

    def due(self) -> bool:
        return True

    def stop_asked(self) -> bool:
        self.steps += 1
        return self.steps in (3, 8)


@pytest.mark.parametrize("most", [6, 3, 2])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits_in_the_same_way(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Though memory is plenty when it goes on."""
    with monkeypatch.context() as little:
        limited(little, most)
        whole = inverted(subject)
    store = Kept()
    with monkeypatch.context() as little:
        limited(little, most)
        with pytest.raises(KeyboardInterrupt):
            inverted(subject, probekit.Context(store=store))
    found = None
    for _ in range(3):
        try:
            found = inverted(subject, probekit.Context(store=store))
            break
        except KeyboardInterrupt:
            continue
    assert found is not None
    assert shares(found) is shares(whole)
    assert found.notes == whole.notes
    assert all(torch.equal(tensor, whole.tensors[key]) for key, tensor in found.tensors.items())
