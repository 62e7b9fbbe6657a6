"""The exact inverter never verifies a wrong token: whatever is done to the activations, and to the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.exact_inverter.targets import Target, blurred
from tests.analyses.recovering import (
    OTHER,
    PROMPT,
    SITE,
    few_samples,
    given,
    gpt2,
    guessing,
    inverter,
    llama,
    recover,
    run,
    scoring,
    statuses,
    target_of,
    verified,
    without,
    wrong,
)
from tests.forward.tiny import named

MAKERS: dict[str, Callable[..., probekit.Subject]] = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def subject(kind: str) -> probekit.Subject:
    return MAKERS[kind]()


def noise_like(target: Target, seed: int = 1) -> torch.Tensor:
    """Random activations of the norms of these."""
    drawn = torch.randn(target.activations.shape, generator=torch.Generator().manual_seed(seed))
    return drawn * (target.norms / drawn.norm(dim=-1))[:, None]


def blur(target: Target, rounding: Any = "none", noise: float = 0.0, seed: int = 0) -> Target:
    return blurred(target, rounding, noise, probekit.Context(seed), "noise")


# --- activations that are not of this model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["another model", "another layer", "random", "scaled", "a little scaled", "negative", "reversed"]
)
def test_nothing_is_verified_of_activations_that_are_not_of_this_model(
    kind: str, subject: probekit.Subject, what: str
) -> None:
    target = target_of(subject, PROMPT)
    activations = target.activations
    made: dict[str, Callable[[], torch.Tensor]] = {
        "another model": lambda: target_of(MAKERS[kind](seed=1), PROMPT).activations,
        "another layer": lambda: target_of(subject, PROMPT, "block.0").activations,
        "random": lambda: noise_like(target),
        "scaled": lambda: activations * 1.01,
        "a little scaled": lambda: activations * 1.0001,
        "negative": lambda: -activations,
        "reversed": lambda: activations.flip(0),
    }
    found = recover(subject, given(target, made[what]()))
    assert verified(found) == {}
    assert found.reasons


@pytest.mark.parametrize("kept", [1, 4, 7])
def test_another_prompts_activations_from_some_position_on(subject: probekit.Subject, kept: int) -> None:
    target, other = target_of(subject, PROMPT), target_of(subject, OTHER)
    found = recover(subject, given(target, torch.cat([target.activations[:kept], other.activations[kept:]])))
    assert verified(found) == dict(enumerate(PROMPT[:kept]))


def test_shifted_activations_are_of_other_positions() -> None:
    """Where positions are counted from the start. Behind turned keys alone, a token twice gives what it gives once."""
    subject = gpt2()
    target = target_of(subject, PROMPT)
    assert verified(recover(subject, given(target, target.activations.roll(1, 0)))) == {}


def test_an_activation_of_another_token_after_the_same_tokens_is_that_tokens(subject: probekit.Subject) -> None:
    """What was put there does come from that token; what follows does not come from it."""
    target, other = target_of(subject, PROMPT), target_of(subject, [*PROMPT[:3], 55])
    activations = target.activations.clone()
    activations[3] = other.activations[3]
    found = recover(subject, given(target, activations))
    assert verified(found) == dict(enumerate([*PROMPT[:3], 55]))


@pytest.mark.parametrize("seed", range(8))
def test_mixtures_of_all_kinds_of_damage(subject: probekit.Subject, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target, other = target_of(subject, PROMPT), target_of(subject, OTHER)
    random = noise_like(target, seed)
    activations = target.activations.clone()
    # The first stays, or the other prompt would be there as well.
    for position, how in list(enumerate(torch.randint(9, (8,), generator=generator).tolist()))[1:]:
        replaced = {
            0: random[position],
            1: activations[position] + 0.1 * random[position],
            2: activations[position] + 1e-3 * random[position],
            3: other.activations[position],
            4: activations[position] * torch.nan,
            5: activations[position] * 0,
        }
        activations[position] = replaced.get(how, activations[position])
    damaged = given(target, activations)
    if bool(damaged.known.any()):
        assert wrong(recover(subject, damaged), PROMPT) == {}
        assert wrong(scoring(inverter(subject), torch.neg).recover([damaged])[0], PROMPT) == {}


# --- damaged positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [1e-5, 1e-3, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_a_damaged_position_is_settled_by_the_later_ones(
    subject: probekit.Subject, position: int, amount: float
) -> None:
    target = target_of(subject, PROMPT)
    activations = target.activations.clone()
    activations[position] += amount * noise_like(target)[position]
    found = recover(subject, given(target, activations))
    assert found.ids == PROMPT
    assert set(statuses(found)) == {"verified"}
    assert f"At position {position}" in found.reasons[0], "it is said all the same"


@pytest.mark.parametrize("amount", [0.05, 0.3, 1.0])
def test_a_damaged_position_of_the_embedded_model_is_settled_by_the_later_ones(
    amount: float,
) -> None:
    demo = probekit.load("demo")
    ids = demo.encode("Once upon a time there was a little girl")[0].tolist()
    target = target_of(demo, ids, "block.2")
    activations = target.activations.clone()
    activations[4] += amount * noise_like(target)[4]
    found = recover(demo, given(target, activations), "block.2")
    assert wrong(found, ids) == {}
    assert found.ids == ids


def test_a_damaged_last_position_is_not_verified(subject: probekit.Subject) -> None:
    target = target_of(subject, PROMPT)
    activations = target.activations.clone()
    activations[7] += 1e-3 * noise_like(target)[7]
    found = recover(subject, given(target, activations))
    assert statuses(found) == ["verified"] * 7 + ["nearest"]


def test_a_position_of_zeros(subject: probekit.Subject) -> None:
    target = target_of(subject, PROMPT)
    activations = target.activations.clone()
    activations[4] = 0
    found = recover(subject, given(target, activations))
    assert wrong(found, PROMPT) == {}
    for verdict in found.verdicts:
        for figure in (verdict.distance, verdict.bound, verdict.rival_distance):
            assert figure is None or math.isfinite(figure)
    assert "e+" not in " ".join(found.reasons), "no figures relative to a norm of zero"


def test_activations_that_are_not_finite_are_unknown(subject: probekit.Subject) -> None:
    target = target_of(subject, PROMPT)
    for position, value in ((2, torch.nan), (4, torch.inf)):
        activations = target.activations.clone()
        activations[position, 5] = value
        assert recover(subject, given(target, activations)).ids == PROMPT


# --- tokens that give the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied_head", [True, False])
def test_tokens_with_one_embedding_are_tied_and_never_verified(tied_head: bool, dtype: torch.dtype) -> None:
    subject = llama(tie_word_embeddings=tied_head)
    with torch.no_grad():
        matrix = subject.model.get_input_embeddings().weight  # type: ignore[operator]
        matrix[44] = matrix[12] = matrix[50]
    subject = probekit.Subject(subject.model.to(dtype))
    for options in ({}, {"rivals": 0}, {"rivals": 1}, {"rivals": "all"}, {"combinations": 0}):
        found = recover(subject, target_of(subject, PROMPT), **options)
        if options.get("rivals") == 0:
            continue  # held against nothing
        assert statuses(found) == [("tied" if token in (44, 50) else "verified") for token in PROMPT], options
        assert {found.ids[3], found.ids[5]} <= {12, 44, 50}
        assert found.verdicts[3].ties >= 1
        if options.get("combinations") != 0:
            assert found.verdicts[3].ties == 2
            assert found.verdicts[3].rival in {12, 44, 50}


def test_ties_are_counted_in_the_figures() -> None:
    subject = gpt2()
    with torch.no_grad():
        matrix = subject.model.get_input_embeddings().weight  # type: ignore[operator]
        matrix[44] = matrix[50]
    result = run(subject, PROMPT, sites=SITE)
    assert result.metrics[f"{SITE}/tied_share"] == 2 / 8
    assert result.metrics[f"{SITE}/false_positives"] == 0
    assert [row["ties"] for row in result.tables["positions"]] == [0, 0, 0, 1, 0, 1, 0, 0]


def test_tokens_that_are_nearer_than_rounding_are_told_apart_where_the_activation_is_exact() -> None:
    """Within the bound of bf16, and not the same: only one of them gives the activation bit for bit."""
    subject = llama()
    with torch.no_grad():
        matrix = subject.model.get_input_embeddings().weight  # type: ignore[operator]
        matrix[44] = matrix[50] * (1 + 2**-7)
    subject = probekit.Subject(subject.model.to(torch.bfloat16))
    assert wrong(recover(subject, target_of(subject, PROMPT)), PROMPT) == {}
    assert wrong(recover(subject, blur(target_of(subject, PROMPT), "int8")), PROMPT) == {}


@pytest.mark.parametrize("first", [44, 50])
def test_tokens_that_a_norm_makes_alike_are_not_verified_wrongly(first: int) -> None:
    """Rows of which one is three times the other are far from each other, but not behind BLOOM's norm of embeddings."""
    subject = probekit.Subject(named("bloom"))
    with torch.no_grad():
        matrix = subject.model.get_input_embeddings().weight  # type: ignore[operator]
        matrix *= 1000
        matrix[44] = 3 * matrix[50]
    last = torch.tensor([44 + 50 - first])
    asked = scoring(inverter(subject), lambda scores: scores.index_fill(1, last, -1e9))
    [found] = asked.recover([target_of(subject, PROMPT)])
    assert wrong(found, PROMPT) == {}


def test_tokens_of_one_text_are_told_apart() -> None:
    """Bytes that are no character by themselves all decode to the same sign."""
    demo = probekit.load("demo")
    ids = demo.encode("日本")[0].tolist()
    texts = demo.tokens(ids)
    found = recover(demo, target_of(demo, ids, "block.0"), "block.0")
    assert len(set(texts)) < len(set(ids)) or len(ids) == len(texts)
    assert verified(found) == dict(enumerate(ids))


# --- rounding and noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["bf16", "fp16", "int8"])
def test_rounded_activations_give_the_prompt_back(subject: probekit.Subject, rounding: str) -> None:
    found = recover(subject, blur(target_of(subject, PROMPT), rounding))
    assert verified(found) == dict(enumerate(PROMPT))
    assert found.reasons == [], "none is beyond the bound"


@pytest.mark.parametrize("rounding", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize(
    "values",
    [
        torch.linspace(1, 2, 320).view(10, 32),
        torch.full((2, 32), 1 + 2**-8 - 2**-20),
        torch.full((2, 32), 1 + 2**-11 - 2**-20),
        torch.linspace(-3e-6, 3e-6, 320).view(10, 32),
        torch.cat([torch.full((3, 1), 1 + 2**-8 - 2**-20), torch.full((3, 31), 1e-4)], 1) * 1000,
    ],
    ids=["all of an octave", "half way in bf16", "half way in fp16", "small", "one great entry"],
)
def test_the_bound_of_rounding_bounds(rounding: str, values: torch.Tensor) -> None:
    nothing = torch.zeros(len(values))
    target = Target(values, nothing == 0, nothing, nothing, None)
    rounded = blur(target, rounding)
    moved = (rounded.activations - values).norm(dim=-1)
    assert bool((moved <= rounded.rounding * (1 + 1e-5)).all()), float((moved / rounded.rounding).max())
    assert bool((rounded.rounding <= 4 * 2.0**-7 * values.norm(dim=-1) + 1e-6).all()), "and not by anything"


def test_activations_beyond_fp16_are_unknown() -> None:
    """Some models have entries above 65504: rounded to fp16 they are infinite."""
    subject = gpt2()
    with torch.no_grad():
        subject.model.transformer.h[1].mlp.c_proj.bias[3] = 1e5  # type: ignore[union-attr, index]
    result = run(subject, PROMPT, sites=SITE, rounding="fp16")
    result.encode()
    assert {row["status"] for row in result.tables["positions"]} == {"undetermined"}
    assert not any(row["known"] for row in result.tables["positions"])


@pytest.mark.parametrize("rounding", ["none", "int8"])
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3, 0.6, 1.0, 3.0])
def test_under_noise_what_is_verified_is_right(subject: probekit.Subject, noise: float, rounding: str) -> None:
    prompts = [PROMPT, OTHER] * 4
    targets = [blur(target_of(subject, ids), rounding, noise, seed) for seed, ids in enumerate(prompts)]
    found = inverter(subject).recover(targets)
    assert [wrong(each, ids) for each, ids in zip(found, prompts, strict=True)] == [{}] * 8
    if noise <= 0.1:
        assert [each.ids for each in found] == prompts
        assert sum(len(verified(each)) for each in found) >= 56
    if noise >= 1:
        assert {status for each in found for status in statuses(each)} <= {"tied", "nearest", "matching"}


def test_under_noise_no_wrong_token_is_verified_behind_one_that_is_tied(subject: probekit.Subject) -> None:
    """A token that noise makes uncertain may be another, and what is held against a wrong prefix proves nothing."""
    target = target_of(subject, OTHER[:4])
    found = inverter(subject).recover([blur(target, "none", 0.6, seed) for seed in range(40)])
    assert any("tied" in statuses(each)[:3] for each in found)
    assert [wrong(each, OTHER) for each in found] == [{}] * 40


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_noise_that_is_not_said_is_not_verified(subject: probekit.Subject, noise: float) -> None:
    target = target_of(subject, PROMPT)
    blurry = replace(blur(target, noise=noise), sigma=torch.zeros(8))
    assert verified(recover(subject, blurry)) == {}


def test_noise_is_of_the_size_that_is_said(subject: probekit.Subject) -> None:
    target = target_of(subject, PROMPT)
    moved = torch.cat([blur(target, noise=0.5, seed=seed).activations - target.activations for seed in range(30)])
    sizes = (moved.view(30, 8, -1).square().mean((0, 2)) / target.activations.square().mean(-1)).sqrt()
    assert sizes.tolist() == pytest.approx([0.5] * 8, rel=0.1)
    assert torch.equal(blur(target, noise=0.5).activations, blur(target, noise=0.5).activations)


@pytest.mark.parametrize("order", ["as it is", "negated", "all alike"])
@pytest.mark.parametrize("tolerance", [0.1, 0.5, 1.0, 3.0])
def test_a_tolerance_that_is_too_wide_ties_and_does_not_verify_what_is_wrong(
    subject: probekit.Subject, tolerance: float, order: str
) -> None:
    changes = {"as it is": lambda scores: scores, "negated": torch.neg, "all alike": torch.zeros_like}
    asked = scoring(inverter(subject, tolerance=tolerance), changes[order])
    [found] = asked.recover([target_of(subject, PROMPT)])
    assert wrong(found, PROMPT) == {}


def test_a_wrong_guess_within_a_wide_tolerance_is_put_right(subject: probekit.Subject) -> None:
    [found] = guessing(inverter(subject, tolerance=2.0), OTHER).recover([target_of(subject, PROMPT)])
    assert wrong(found, PROMPT) == {}


def test_unknown_positions_under_rounding_and_damage(subject: probekit.Subject) -> None:
    target = blur(target_of(subject, PROMPT), "int8")
    for unknown in ((2,), (0, 4), (5, 6)):
        assert wrong(recover(subject, without(target, *unknown)), PROMPT) == {}
