"""How much of a prompt survives a reconstruction: all of it in the activations themselves, nothing in a constant.

An attacker who knows the autoencoder gets what the code tells apart, wherever it puts it, and nothing by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.autoencoder.aware import error_through
from probekit_plugins.autoencoder.survival import Survival, survivors
from probekit_plugins.token_likelihood import TokenLikelihood
from tests.analyses.recovering import OTHER, PROMPT, SITE, VOCABULARY, few_samples, gpt2, run
from tests.autoencoder.made_up import everything
from tests.autoencoder.test_page import captioned, drawn, table
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
    assert (found.rows[1]["token_accuracy_aware"], found.rows[1]["exact_prompts_aware"]) == (1.0, 1.0)
    ids = [sequence.ids for sequence in alone.sequences["recovered"]]
    assert [sequence.ids for sequence in found.recovered] == [*ids, *ids]
    assert [sequence.ids for sequence in found.aware] == ids
    assert [sequence.labels["told"] for sequence in found.aware] == ["1" * len(each) for each in ids]


def test_nothing_survives_a_constant(subject: probekit.Subject) -> None:
    """The failing control: one token in sixty by chance."""
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(1, VOCABULARY, (8, 8), generator=generator).tolist()
    found = of(subject, prompts, constant=lambda x: torch.ones_like(x), error=1.0)
    none, constant = found.rows
    assert none["token_accuracy"] == 1
    assert float(constant["token_accuracy"] or 0) < 0.15
    assert constant["exact_prompts"] == 0
    assert (constant["token_accuracy_aware"], constant["exact_prompts_aware"]) == (0, 0)
    # What keeps its own activation is told from others, and nothing else is.
    assert {sequence.labels["told"] for sequence in found.aware} == {"10000000"}


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
    assert found.rows[1]["token_accuracy_aware"] == 1.0


# --- one who knows the autoencoder ------------------------------------------------------------------------------------


def rotation(width: int = 32) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q
    return found


def test_a_rotation_hides_the_prompt_from_who_does_not_know_it_and_from_nobody_else(subject: probekit.Subject) -> None:
    turn = rotation()
    found = of(subject, [PROMPT, OTHER[:5]], turned=lambda x: x @ turn, error=5.0)
    row = found.rows[1]
    assert float(row["token_accuracy"] or 0) < 0.3
    assert (row["token_accuracy_aware"], row["exact_prompts_aware"]) == (1.0, 1.0)
    assert [sequence.ids for sequence in found.aware] == [PROMPT, OTHER[:5]]


def test_one_bit_of_an_activation_tells_no_tokens_apart_though_some_are_guessed(subject: probekit.Subject) -> None:
    """A guess among equals does not count, even a right one."""
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(1, VOCABULARY, (6, 8), generator=generator).tolist()
    found = of(subject, prompts, bit=lambda x: (x[:, :1] > 0).float().expand_as(x) + 0.5, error=5.0)
    assert float(found.rows[1]["token_accuracy_aware"] or 0) < 0.03
    guessed = [
        one == other
        for sequence, prompt in zip(found.aware, prompts, strict=True)
        for one, other in zip(sequence.ids[1:], prompt[1:], strict=True)
    ]
    assert any(guessed)


def merging(subject: probekit.Subject, position: int, *others: int) -> Edit:
    """A code that is exact, but for one position of PROMPT: there it has one point for all of some tokens."""
    ids = torch.tensor([[*PROMPT[:position], token] for token in (PROMPT[position], *others)])
    merged = subject.capture(ids, [SITE])[SITE][:, position]

    def of(x: torch.Tensor) -> torch.Tensor:
        near = torch.cdist(x, merged, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-3
        return torch.where(near[:, None], merged.mean(0), x)

    return of


@pytest.mark.parametrize("others", [(7,), (7, 8, 9)])
def test_tokens_of_one_code_are_told_apart_by_what_comes_after_them(
    subject: probekit.Subject, others: tuple[int, ...]
) -> None:
    last = len(PROMPT) - 1
    found = of(subject, [PROMPT], middle=merging(subject, 3, *others), last=merging(subject, last, *others))
    middle, end = found.aware
    assert (middle.ids, middle.labels["told"]) == (PROMPT, "11111111")
    assert end.labels["told"] == "11111110"
    assert found.rows[2]["token_accuracy_aware"] == pytest.approx(6 / 7)
    assert found.rows[2]["exact_prompts_aware"] == 0


def test_a_code_that_jumps_is_told_in_bf16_as_well() -> None:
    """Another shape of a batch switches features there; alone, as the prompt did, tokens give the same."""
    turn = rotation()

    def largest(x: torch.Tensor) -> torch.Tensor:
        code = x @ turn
        return torch.where(code.abs() == code.abs().amax(-1, keepdim=True), code, 0) @ turn.T

    found = of(gpt2(torch.bfloat16), [PROMPT, OTHER], largest=largest, constant=torch.ones_like, error=1.0)
    largest_row, constant = found.rows[1:]
    assert float(largest_row["token_accuracy_aware"] or 0) > 0.8
    assert constant["token_accuracy_aware"] == 0
    assert all(str(sequence.labels["told"]).startswith("1") for sequence in found.aware)


def test_a_code_that_jumps_between_shapes_is_told_by_what_passes_alone(subject: probekit.Subject) -> None:
    """As if the arithmetic of a large batch switched a feature on: no candidate fits in it, and the right one alone."""
    found = of(subject, [PROMPT, OTHER], jumping=lambda x: x + (0.5 if len(x) > 20 else 0.0), error=0.1)
    assert found.rows[1]["token_accuracy_aware"] == 1


def test_of_more_tokens_of_one_code_than_are_followed_none_is_told(subject: probekit.Subject) -> None:
    others = [token for token in range(1, 40) if token != PROMPT[3]]
    found = of(subject, [PROMPT], many=merging(subject, 3, *others))
    assert str(found.aware[0].labels["told"]).startswith("1110")


@pytest.mark.parametrize("width", [2, 6])
def test_a_narrow_code_of_the_demo_keeps_more_for_who_knows_it(width: int) -> None:
    demo, site = probekit.load("demo"), "block.3"
    drawn_ids = torch.randint(demo.vocabulary, (32, 8), generator=torch.Generator().manual_seed(0))
    activations = demo.capture(drawn_ids, [site])[site][:, 1:].flatten(0, 1)
    mean = activations.mean(0)
    directions = torch.linalg.svd(activations - mean).Vh[:width].T

    def narrow(x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(mean, (x - mean) @ directions, directions.T)

    error = float((narrow(activations) - activations).square().mean().sqrt())
    texts = ("It was the best of times.", "The sky over the sea is blue.")
    prompts = [demo.encode(text)[0, :6].tolist() for text in texts]
    row = survivors(demo, site, {"narrow": narrow}, prompts, {"narrow": error}, 1, probekit.Context()).rows[1]
    assert row["token_accuracy_aware"] == 1.0
    assert float(row["token_accuracy"] or 0) < 0.9


def test_what_rounding_may_do_to_a_reconstruction_is_measured(subject: probekit.Subject) -> None:
    samples = [torch.randint(1, VOCABULARY, (64, 8), generator=torch.Generator().manual_seed(0))]

    def error(reconstruct: Edit) -> float:
        drawn = torch.Generator().manual_seed(0)
        return error_through(subject, SITE, reconstruct, 1, samples, 1e-5, drawn)

    def jumping(x: torch.Tensor, rows: slice) -> torch.Tensor:
        jumped = x.clone()
        jumped[rows] += 1e4 * x[rows] % 1
        return jumped

    assert error(lambda x: x) == pytest.approx(2e-5, rel=0.1)
    assert error(lambda x: 30 * x) == pytest.approx(2e-5, rel=0.1)
    # By no less than the activations themselves, though a constant is never off.
    assert error(lambda x: torch.ones_like(x)) == 1e-5
    # A code that jumps everywhere counts, one that does so at one position of 448 does not.
    assert error(lambda x: jumping(x, slice(None))) > 1e-3
    assert error(lambda x: jumping(x, slice(0, 1))) == pytest.approx(2e-5, rel=0.1)


def test_a_run_has_the_figures_of_both(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    words = ["the", "sky", "is", "blue", "and", "sea", "wide", "all", "his", "men", "at", "night"]
    prompts = [" ".join(words[(number + 5 * place) % len(words)] for place in range(6)) for number in range(20)]
    options = {"widths": [2], "steps": 20, "batch": 32, "seeds": 2, "sites": "block.1", "invert": 2}
    done = probekit.run(
        model=str(tiny_gpt2()), plugins=["autoencoder"], prompts=prompts, options=options, output=tmp_path / "run"
    )
    trained = done.result.tables["trained"]
    [setting] = done.result.tables["settings"]
    for name in ("tokens_survived_aware", "prompts_survived_aware"):
        shares = [float(str(row[name])) for row in trained]
        assert all(0 <= share <= 1 for share in shares)
        assert setting[name] == pytest.approx(sum(shares) / 2)
    told = [each for each in done.result.sequences["survivors"] if "told" in each.labels]
    assert {(each.labels["name"], each.labels["prompt"]) for each in told} == {
        (row["name"], number) for row in trained for number in (0, 1)
    }
    assert "if the autoencoder is known" in done.result.finding


def test_the_page_shows_both() -> None:
    result = everything()
    for row in result.tables["settings"]:
        if "tokens_survived" in row:
            row |= {"tokens_survived_aware": 0.9, "prompts_survived_aware": 0.5}
    assert not captioned(
        drawn(result), "With the autoencoder known", "chart"
    )  # which would have nothing but a level line
    result.tables["settings"][1]["tokens_survived_aware"] = 0.8
    result.sequences["survivors"] += [
        replace(each, labels={**each.labels, "told": "1110"})
        for each in result.sequences["survivors"]
        if each.labels["name"] == "plain-4-seed0"
    ]
    page = drawn(result)
    rows = table(page, "The share of the tokens that come back")
    assert rows[0]["tokens, autoencoder known"] is None
    assert rows[1]["tokens survived"] == "0.665 (0.660–0.670)"
    assert (rows[1]["tokens, autoencoder known"], rows[1]["whole prompts, autoencoder known"]) == (0.9, 0.5)
    [chart] = captioned(page, "With the autoencoder known", "chart")
    assert {point["figure"] for point in chart["spec"]["data"]["values"]} == {0.8, 0.9, 0.96}
    first = captioned(page, "Prompt 1", "tokens")[0]["rows"]
    assert [row["label"] for row in first][2:5] == ["plain-4", "plain-4, known", "plain-8"]
    # The last token is the prompt's own, but was not told from others.
    assert [token.get("mark") for token in first[3]["tokens"]] == [None, "right", "wrong", "wrong"]
    assert first[3]["note"] == "1 of 3"


def test_a_result_without_who_knows_it_says_nothing_of_him() -> None:
    page = drawn(everything())
    assert list(table(page, "The share of the tokens that come back")[0]) == [
        "setting",
        "tokens survived",
        "whole prompts",
    ]
    assert not captioned(page, "With the autoencoder known")


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
