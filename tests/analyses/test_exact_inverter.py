"""The exact inverter: every token back, with proof, from every layer; what it tries, and what it costs."""

from __future__ import annotations

import math
import time
from statistics import NormalDist
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.batches import Batches
from probekit_plugins.exact_inverter.figures import figures
from probekit_plugins.exact_inverter.tolerance import arithmetic_error
from probekit_plugins.exact_inverter.verdict import noise_survived
from tests.analyses.recovering import (
    OTHER,
    PROMPT,
    SITE,
    few_samples,
    forwards,
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

EVERYTHING = {"proposals": 1, "gradient_steps": 0}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    few_samples(monkeypatch)


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


@pytest.fixture(scope="module")
def demo() -> probekit.Subject:
    return probekit.load("demo")


def assert_verified(recovery: Any, ids: list[int]) -> None:
    assert recovery.ids == ids
    assert set(statuses(recovery)) == {"verified"}
    assert not recovery.reasons


# --- what comes back -------------------------------------------------------------------------------------------------


def test_prompts_of_several_lengths_come_back_verified_from_every_block_of_the_embedded_model(
    demo: probekit.Subject,
) -> None:
    prompts = [[7], demo.encode("The sky is blue.")[0].tolist(), demo.encode("日本 é 🦊")[0].tolist()]
    result = run(demo, *prompts, sites="every-block")
    blocks = len(demo.anatomy.blocks)
    assert [row["site"] for row in result.tables["prompts"]] == [f"block.{n}" for n in range(blocks) for _ in prompts]
    assert all(row["exact"] and row["verified"] == row["tokens"] for row in result.tables["prompts"])
    assert [sequence.ids for sequence in result.sequences["recovered"]] == prompts * blocks
    assert "none of them wrongly" in result.finding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "openai-gpt", "rwkv", "bloom"])
def test_models_of_every_kind_without_a_tokenizer(name: str, dtype: torch.dtype) -> None:
    """With keys and values, with a state, and without a cache."""
    subject = probekit.Subject(named(name).to(dtype))
    assert_verified(recover(subject, target_of(subject, PROMPT)), PROMPT)


def test_the_embedded_model_in_bf16() -> None:
    subject = probekit.load("demo", dtype="bfloat16")
    ids = subject.encode("Once upon a time there was a little girl")[0].tolist()
    assert_verified(recover(subject, target_of(subject, ids, "block.2"), "block.2"), ids)


@pytest.mark.parametrize("site", ["embedding", "norm", "logits", "transformer.h.1.attn", "transformer.h.0.mlp.c_fc"])
def test_sites_of_every_kind(subject: probekit.Subject, site: str) -> None:
    assert_verified(recover(subject, target_of(subject, PROMPT, site), site), PROMPT)


@pytest.mark.parametrize("prompt", [[5], [5, 5, 5, 5, 5], PROMPT + OTHER], ids=["one token", "repeated", "context"])
def test_odd_prompts(subject: probekit.Subject, prompt: list[int]) -> None:
    result = run(subject, prompt, sites=SITE)
    assert result.tables["prompts"][0]["exact"]
    assert result.metrics[f"{SITE}/verified_share"] == 1


def test_a_context_of_two_tokens() -> None:
    assert run(gpt2(n_positions=2), [5, 6], sites=SITE).metrics[f"{SITE}/verified_share"] == 1


def test_a_context_of_one_token() -> None:
    assert run(gpt2(n_positions=1), [5], sites=SITE).metrics[f"{SITE}/verified_share"] == 1


def test_a_vocabulary_of_two_tokens() -> None:
    result = run(gpt2(vocab_size=2), [0, 1, 1, 0], sites=SITE, rivals="all")
    assert result.metrics[f"{SITE}/exact_rate"] == 1


def test_prompts_of_several_lengths_one_row_at_a_time(subject: probekit.Subject) -> None:
    prompts = [PROMPT, OTHER[:3], [5]]
    result = run(subject, *prompts, sites=SITE, rows_at_once=1)
    assert [sequence.ids for sequence in result.sequences["recovered"]] == prompts
    assert result.metrics[f"{SITE}/verified_share"] == 1


# --- completeness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("order", ["as it is", "negated", "all alike"])
def test_the_scan_finds_every_token_whatever_the_scores_say(make: Any, order: str) -> None:
    changes = {"as it is": lambda scores: scores, "negated": torch.neg, "all alike": torch.zeros_like}
    subject = make()
    [found] = scoring(inverter(subject, **EVERYTHING), changes[order]).recover([target_of(subject, PROMPT)])
    assert_verified(found, PROMPT)


def test_the_scan_tries_each_token_once(subject: probekit.Subject) -> None:
    [found] = scoring(inverter(subject, **EVERYTHING), torch.neg).recover([target_of(subject, PROMPT)])
    assert max(found.tried) <= subject.vocabulary
    assert found.by_gradient == [0] * len(PROMPT)


def test_the_gradient_policy_finds_tokens_by_itself(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit_plugins.exact_inverter.candidates.WORTH", 0)
    alone = scoring(inverter(subject, proposals=1, gradient_steps=60, scan=False), torch.neg)
    [found] = alone.recover([target_of(subject, PROMPT)])
    assert_verified(found, PROMPT)
    assert all(0 < by_gradient < tried for by_gradient, tried in zip(found.by_gradient, found.tried, strict=True))


def test_the_gradient_policy_is_nearer_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds tokens after a small part of a vocabulary in which the scores would find them last."""
    monkeypatch.setattr("probekit_plugins.exact_inverter.candidates.WORTH", 0)
    subject = gpt2(vocab_size=600)
    alone = scoring(inverter(subject, proposals=1, gradient_steps=60, scan=False), torch.neg)
    [found] = alone.recover([target_of(subject, PROMPT[:3])])
    assert_verified(found, PROMPT[:3])
    assert sum(found.tried) < 600


def test_the_gradient_policy_ends_where_no_token_is_left(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps than the vocabulary has tokens for, at an activation that no token gives."""
    monkeypatch.setattr("probekit_plugins.exact_inverter.candidates.WORTH", 0)
    target = target_of(subject, PROMPT)
    noise = torch.randn(target.activations.shape, generator=torch.Generator().manual_seed(1))
    found = recover(subject, given(target, noise), proposals=1, gradient_steps=100)
    assert verified(found) == {}
    assert found.tried[0] == subject.vocabulary


def test_what_was_not_tried_is_not_claimed(subject: probekit.Subject) -> None:
    short = scoring(inverter(subject, proposals=1, gradient_steps=0, scan=False, combinations=0), torch.neg)
    [found] = short.recover([target_of(subject, PROMPT)])
    assert verified(found) == {}
    assert "none of the tokens that were tried" in found.reasons[0]
    assert "vocabulary" not in " ".join(found.reasons)


def test_all_rivals_are_compared_where_that_is_asked_for(subject: probekit.Subject) -> None:
    """The margin over the whole vocabulary is that of an independent computation."""
    target = target_of(subject, PROMPT)
    found = recover(subject, target, rivals="all")
    for position in (0, 3, 7):
        rows = torch.tensor(PROMPT[: position + 1]).repeat(subject.vocabulary, 1)
        rows[:, -1] = torch.arange(subject.vocabulary)
        distances = (subject.capture(rows, [SITE])[SITE][:, -1] - target.activations[position]).norm(dim=-1)
        distances[PROMPT[position]] = torch.inf
        verdict = found.verdicts[position]
        assert verdict.rival == int(distances.argmin())
        assert verdict.rival_distance == pytest.approx(float(distances.min() / target.norms[position]), rel=1e-4)


# --- unknown positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [0, 3, 6])
def test_an_unknown_position_is_determined_by_the_next(subject: probekit.Subject, unknown: int) -> None:
    assert_verified(recover(subject, without(target_of(subject, PROMPT), unknown)), PROMPT)


def test_an_unknown_token_is_verified_only_where_all_of_the_vocabulary_was_tried(subject: probekit.Subject) -> None:
    target = without(target_of(subject, PROMPT), 3)
    guessed = guessing(inverter(subject, combinations=0), PROMPT)
    [found] = guessed.recover([target])
    assert found.ids == PROMPT
    assert statuses(found)[3:] == ["matching"] * 5
    assert statuses(found)[:3] == ["verified"] * 3


def test_a_trailing_unknown_position_is_undetermined(subject: probekit.Subject) -> None:
    result = run(subject, PROMPT, sites=SITE, positions=[0, 1, 2, 3, 4, 5, -2])
    assert [row["status"] for row in result.tables["positions"]] == ["verified"] * 7 + ["undetermined"]
    assert [row["known"] for row in result.tables["positions"]] == [True] * 7 + [False]
    last = result.tables["positions"][-1]
    assert last["distance"] is last["bound"] is last["rival"] is None


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("first", [0, 3])
def test_two_unknown_positions_in_a_row_are_never_verified(make: Any, first: int) -> None:
    subject = make()
    found = recover(subject, without(target_of(subject, PROMPT), first, first + 1))
    assert statuses(found)[:first] == ["verified"] * first
    assert not set(verified(found)) & {first, first + 1}
    if found.ids == PROMPT:
        assert statuses(found)[first : first + 2] == ["matching"] * 2


def test_two_unknown_positions_that_are_found_match() -> None:
    subject = gpt2()
    found = recover(subject, without(target_of(subject, PROMPT), 3, 4))
    assert found.ids == PROMPT
    assert statuses(found) == ["verified"] * 3 + ["matching"] * 5


def test_all_but_the_last_unknown_is_given_up_quickly_and_with_a_reason(subject: probekit.Subject) -> None:
    inverter(subject)
    start = time.perf_counter()
    found = recover(subject, without(target_of(subject, PROMPT), *range(7)))
    assert time.perf_counter() - start < 2
    assert statuses(found)[:7] == ["undetermined"] * 7
    assert verified(found) == {}
    assert "no combination was tried" in " ".join(found.reasons)


def test_where_later_activations_do_not_depend_on_a_token_all_tokens_are_tied(subject: probekit.Subject) -> None:
    target = without(target_of(subject, PROMPT, "embedding"), 3)
    found = recover(subject, target, "embedding")
    assert statuses(found)[:4] == ["verified"] * 3 + ["tied"]
    assert set(statuses(found)[4:]) <= {"verified", "matching"}
    assert found.ids[4:] == PROMPT[4:]
    assert found.verdicts[3].ties == subject.vocabulary - 1


@pytest.mark.parametrize("positions", [[], [8], [-9], [0, 99]], ids=str)
def test_positions_that_are_not_there_are_one_sentence(subject: probekit.Subject, positions: list[int]) -> None:
    with pytest.raises(probekit.UsageError, match=r"The option positions is .*from 0 to 7 or negative"):
        run(subject, PROMPT, sites=SITE, positions=positions)


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 0},
        {"tolerance": math.inf},
        {"noise": -1},
        {"noise": math.nan},
        {"rivals": -1},
        {"rivals": "some"},
        {"proposals": 0},
        {"rounding": "int4"},
        {"activations": ""},
    ],
    ids=str,
)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    from probekit_plugins.exact_inverter import ExactInverterOptions

    with pytest.raises(ValueError, match=next(iter(options))):
        ExactInverterOptions(**options)


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_a_right_guess_costs_one_pass_to_find_and_one_to_prove(subject: probekit.Subject) -> None:
    target = target_of(subject, PROMPT)
    ready = guessing(inverter(subject, rivals=0), PROMPT)
    with forwards(subject) as seen:
        [found] = ready.recover([target])
    assert found.ids == PROMPT
    assert seen == [(1, 8), (1, 8)]
    assert found.tried == [1] * 8
    assert found.computed == 8


def test_right_guesses_of_prompts_of_one_length_are_one_batch(subject: probekit.Subject) -> None:
    target = target_of(subject, PROMPT)
    ready = guessing(inverter(subject, rivals=0), PROMPT)
    with forwards(subject) as seen:
        found = ready.recover([target] * 3)
    assert [each.ids for each in found] == [PROMPT] * 3
    assert seen == [(3, 8)] + [(1, 8)] * 3


def test_candidates_at_a_position_are_one_batch_on_a_prefix_that_is_computed_once(subject: probekit.Subject) -> None:
    """Wrong at one position: the guess, the prefix, a batch of candidates, the whole again, and the proof."""
    target = target_of(subject, PROMPT)
    guess = [*PROMPT[:5], 12, *PROMPT[6:]]
    ready = guessing(inverter(subject, rivals=0), guess)
    subject.continuation(torch.tensor([1, 2, 3]), SITE)(torch.tensor([[4]]))  # whether it has a cache is tried once
    with forwards(subject) as seen:
        [found] = ready.recover([target])
    assert found.ids == PROMPT
    assert seen[:2] == [(1, 8), (1, 5)]
    assert seen[2:-2] == [(31, 1), (28, 1)], "the vocabulary less the guess, in batches that grow"
    assert seen[-2:] == [(1, 8), (1, 8)]
    assert found.tried == [1, 1, 1, 1, 1, 60, 1, 1]


# --- arithmetic, noise, figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_arithmetic_error_bounds_how_far_a_model_is_from_itself(make: Any, dtype: torch.dtype) -> None:
    """For prompts that it was not measured on: alone, in a batch, cut, and after a prefix."""
    subject = make(dtype)
    generator = torch.Generator().manual_seed(1)
    measured, others = torch.randint(60, (2, 24, 8), generator=generator)
    bound = arithmetic_error(subject, SITE, [measured], Batches(probekit.Context()))
    assert bound < (1e-5 if dtype == torch.float32 else 0.1)
    together = subject.capture(others, [SITE])[SITE].float()
    for row, beside in zip(others, together, strict=True):
        alone = subject.capture(row[None], [SITE])[SITE][0].float()
        short = subject.capture(row[None, :3], [SITE])[SITE][0].float()
        among = torch.stack([row[3], row[0], row[1]])[:, None]
        following = subject.continuation(row[:3], SITE)(among)[0].float()
        for found, wanted in ((beside, alone), (short, alone[:3]), (following, alone[3:4])):
            apart = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
            assert float(apart.max()) <= bound


def test_a_model_that_sees_what_comes_later_is_refused() -> None:
    subject = probekit.Subject(named("cpmant"))
    with pytest.raises(probekit.AnalysisError, match="depends on tokens that come later"):
        run(subject, PROMPT, sites="block.0")


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
@pytest.mark.parametrize("site", ["block.0", "block.-1"])
def test_models_that_look_ahead_a_little_are_refused_as_well(name: str, site: str) -> None:
    """With random weights attention does little: what comes later changes an activation by some percent."""
    subject = probekit.Subject(named(name))
    with pytest.raises(probekit.AnalysisError, match="depends on tokens that come later"):
        run(subject, PROMPT, sites=site)


def test_a_model_of_one_length_is_refused_in_words_that_fit() -> None:
    subject = probekit.Subject(gpt2().model, anatomy={"sequence": 8})
    with pytest.raises(probekit.AnalysisError, match=r"length|one after the other|left to right"):
        run(subject, PROMPT, sites=SITE)


def test_weights_that_are_not_finite_are_refused_with_a_sentence() -> None:
    subject = gpt2()
    with torch.no_grad():
        subject.model.transformer.wte.weight[59] = torch.nan  # type: ignore[union-attr, index]
    with pytest.raises(probekit.ProbekitError):
        run(subject, PROMPT, sites=SITE)


def test_the_noise_that_is_survived_is_that_at_which_a_rival_is_taken_once_in_a_thousand(
    subject: probekit.Subject,
) -> None:
    """`P(Δ/2 < N(0, σ rms)) = 1/1000` along the line between the two activations."""
    target = target_of(subject, PROMPT)
    found = recover(subject, target, rivals="all")
    for position, verdict in enumerate(found.verdicts):
        ids = [*PROMPT[:position], int(verdict.rival or 0)]
        rival = subject.capture(torch.tensor([ids]), [SITE])[SITE][0, -1]
        wanted = target.activations[position]
        apart = float((rival - wanted).norm())
        sigma = float(noise_survived(verdict, len(wanted)) or 0) * float(wanted.square().mean().sqrt())
        assert 1 - NormalDist().cdf(apart / 2 / sigma) == pytest.approx(1e-3, rel=0.02)


def test_figures_are_those_computed_by_hand() -> None:
    def position(right: bool | None, status: str, distance: float | None, rival: float | None, tried: int) -> Any:
        survived = None if rival is None else 2 * rival
        return {
            "right": right,
            "status": status,
            "distance": distance,
            "rival_distance": rival,
            "noise_survived": survived,
            "tried": tried,
        }

    def prompt(tokens: int, exact: bool | None, verified: int, tied: int, wrongly: int | None) -> Any:
        return {"tokens": tokens, "exact": exact, "verified": verified, "tied": tied, "false_positives": wrongly}

    positions = [
        position(True, "verified", 0.1, 0.5, 1),
        position(True, "tied", 0.2, 0.05, 33),
        position(False, "nearest", 0.9, None, 60),
        position(True, "verified", 0.3, 0.7, 2),
    ]
    found = figures([prompt(3, False, 1, 1, 0), prompt(1, True, 1, 0, 0)], positions)
    assert found == {
        "exact_rate": 0.5,
        "token_accuracy": 0.75,
        "verified_share": 0.5,
        "tied_share": 0.25,
        "false_positives": 0.0,
        "candidates_per_token": 24.0,
        "candidates_most": 60.0,
        "distance_most": 0.3,
        "margin_least": 0.05,
        "margin_median": 0.5,
        "noise_survived_least": 0.1,
    }
    untold = figures([prompt(1, None, 0, 0, None)], [position(None, "undetermined", None, None, 0)])
    assert untold["exact_rate"] is untold["token_accuracy"] is untold["false_positives"] is None
    assert untold["distance_most"] is untold["margin_least"] is untold["noise_survived_least"] is None
    assert untold["verified_share"] == 0


def test_rows_hold_what_is_right_and_what_is_not(subject: probekit.Subject) -> None:
    result = run(subject, PROMPT, sites=SITE, positions=[0, 1, 2])
    rows = result.tables["positions"]
    assert [row["right"] for row in rows] == [
        row["recovered"] == token for row, token in zip(rows, PROMPT, strict=True)
    ]
    [row] = result.tables["prompts"]
    assert (row["verified"], row["tied"], row["false_positives"]) == (3, 0, 0)
    assert result.metrics[f"{SITE}/verified_share"] == 3 / 8
    assert wrong(recover(subject, target_of(subject, PROMPT)), PROMPT) == {}
