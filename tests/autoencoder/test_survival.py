"""How much of a prompt survives a reconstruction: all of it in the activations themselves, nothing in a constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.autoencoder.survival import Survival, survivors
from probekit_plugins.token_likelihood import TokenLikelihood
from tests.analyses.recovering import OTHER, PROMPT, SITE, VOCABULARY, few_samples, gpt2, run
from tests.forward.tiny import named

Edit = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def of(
    subject: probekit.Subject,
    prompts: Sequence[Sequence[int]],
    skip_first: int = 1,
    error: float = 0.1,
    site: str = SITE,
    **autoencoders: Edit,
) -> Survival:
    errors = dict.fromkeys(autoencoders, error)
    return survivors(subject, site, autoencoders, prompts, errors, skip_first, probekit.Context())


def noisy(sigma: float) -> Edit:
    def of(x: torch.Tensor) -> torch.Tensor:
        return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))

    return of


def test_the_activations_themselves_give_what_the_exact_inverter_does(subject: probekit.Subject) -> None:
    found = of(subject, [PROMPT, OTHER[:5]], itself=lambda x: x, error=0.0)
    alone = run(subject, PROMPT, OTHER[:5], sites=SITE)
    assert [(row["autoencoder"], row["token_accuracy"], row["exact_prompts"]) for row in found.rows] == [
        ("none", 1.0, 1.0),
        ("itself", 1.0, 1.0),
    ]
    ids = [sequence.ids for sequence in alone.sequences["recovered"]]
    assert [sequence.ids for sequence in found.recovered] == [*ids, *ids]


def test_nothing_survives_a_constant(subject: probekit.Subject) -> None:
    """The failing control: one token in sixty by chance."""
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(1, VOCABULARY, (8, 8), generator=generator).tolist()
    found = of(subject, prompts, constant=lambda x: torch.ones_like(x), error=1.0)
    none, constant = found.rows
    assert none["token_accuracy"] == 1
    assert float(constant["token_accuracy"] or 0) < 0.15
    assert constant["exact_prompts"] == 0


def test_the_farther_a_reconstruction_is_off_the_less_survives(subject: probekit.Subject) -> None:
    scale = float(subject.capture(torch.tensor([PROMPT]), [SITE])[SITE].square().mean().sqrt())
    prompts = [PROMPT, OTHER]
    errors = {"slight": 0.1 * scale, "strong": 5 * scale}
    autoencoders = {name: noisy(sigma) for name, sigma in errors.items()}
    found = survivors(subject, SITE, autoencoders, prompts, errors, 1, probekit.Context())
    shares = {str(row["autoencoder"]): float(row["token_accuracy"] or 0) for row in found.rows}
    assert shares["none"] == shares["slight"] == 1
    assert shares["strong"] < 0.6


def test_the_first_positions_keep_their_own_activation_and_do_not_count(subject: probekit.Subject) -> None:
    found = of(subject, [PROMPT], 5, constant=lambda x: torch.ones_like(x), error=1.0)
    assert [row["tokens"] for row in found.rows] == [3, 3]
    assert found.recovered[1].ids[:5] == PROMPT[:5]
    assert found.rows[1]["token_accuracy"] == pytest.approx(
        sum(a == b for a, b in zip(found.recovered[1].ids[5:], PROMPT[5:], strict=True)) / 3
    )


def test_sequences_stand_beside_their_prompts(subject: probekit.Subject) -> None:
    found = of(subject, [[5], PROMPT, OTHER[:4]], x=lambda x: x)
    assert [sequence.ids for sequence in found.prompts] == [PROMPT, OTHER[:4]]  # one of one token says nothing
    assert [sequence.labels for sequence in found.prompts] == [{"site": SITE, "prompt": n} for n in (0, 1)]
    assert [(s.labels["autoencoder"], s.labels["prompt"]) for s in found.recovered] == [
        (name, number) for name in ("none", "x") for number in (0, 1)
    ]
    probekit.Result(sequences={"prompt": found.prompts, "recovered": found.recovered}).encode()


def test_the_site_is_learnt_once_for_all(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(TokenLikelihood):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            made.append(1)
            super().__init__(*arguments, **keywords)

    monkeypatch.setattr("probekit_plugins.exact_inverter.recovery.TokenLikelihood", Counted)
    of(subject, [PROMPT], a=lambda x: x, b=noisy(0.1), c=noisy(0.2))
    assert len(made) == 1


def test_in_bf16() -> None:
    found = of(gpt2(torch.bfloat16), [PROMPT], itself=lambda x: x, error=0.0)
    assert [row["token_accuracy"] for row in found.rows] == [1.0, 1.0]


@pytest.mark.parametrize("name", ["cpmant", "bert"])
def test_a_model_that_does_not_read_from_left_to_right_gives_a_reason(name: str) -> None:
    found = of(probekit.Subject(named(name)), [PROMPT], site="block.0", x=lambda x: x)
    assert not found.rows
    assert not found.recovered
    assert "depends on tokens that come later" in str(found.reason)


def test_prompts_that_are_too_short_give_a_reason(subject: probekit.Subject) -> None:
    assert "no prompt is longer than the 3 positions" in str(of(subject, [[1, 2]], 3, x=lambda x: x).reason)


def test_the_model_is_as_it_was(subject: probekit.Subject) -> None:
    ids = torch.tensor([PROMPT])
    before = subject.model(ids).logits
    of(subject, [PROMPT], x=noisy(0.1))
    assert torch.equal(subject.model(ids).logits, before)
    assert not any(module._forward_hooks for module in subject.model.modules())
