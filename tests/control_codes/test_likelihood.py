"""Likelihoods, attribution and penalties, against independent computations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

import probekit
from probekit.testing import prompts, tiny_subject
from probekit_plugins.batches import Batches
from probekit_plugins.control_codes import ControlCodes, ControlCodesOptions
from probekit_plugins.control_codes.attribution import attribute, chance, confusion, score
from probekit_plugins.control_codes.codes import Code
from probekit_plugins.control_codes.generation import generate, penalty, settings
from probekit_plugins.control_codes.likelihood import likelihoods
from probekit_plugins.control_codes.prefixes import Prefix, prefixes
from tests.control_codes import languages

IDS = str(Path(__file__).parent / "ids.toml")


def test_a_likelihood_is_that_of_the_texts_own_tokens_alone() -> None:
    subject, context = tiny_subject(), probekit.Context()
    before = [[0], [0, 5, 7, 9], [3, 3]]
    texts = [[10], [11, 12, 13, 14, 15], [20, 0, 21]]
    found = likelihoods(subject, before, texts, Batches(context), context, "test")
    model = subject.model.double()
    for text, row in zip(texts, found.tolist(), strict=True):
        for prefix, nll in zip(before, row, strict=True):
            ids = torch.tensor([[*prefix, *text]])
            labels = torch.where(torch.arange(ids.shape[1]) < len(prefix), -100, ids)
            with torch.no_grad():
                assert nll == pytest.approx(float(model(input_ids=ids, labels=labels).loss), rel=1e-5)


def test_likelihoods_do_not_depend_on_how_many_are_computed_at_once() -> None:
    subject = tiny_subject()
    texts = [list(range(10, 10 + length)) for length in (1, 9, 4, 30)]
    found = []
    for rows in (None, 1, 3):
        context = probekit.Context()
        memory = Batches(context, ControlCodesOptions(rows_at_once=rows))
        found.append(likelihoods(subject, [[0], [1, 2, 3]], texts, memory, context, "test"))
    assert torch.allclose(found[0], found[1], rtol=1e-5)
    assert torch.allclose(found[0], found[2], rtol=1e-5)


def test_a_text_has_the_same_tokens_under_every_code_and_no_second_space_before_it() -> None:
    bytes_, words = tiny_subject(), languages.subject()
    code = Code("A", "c1 ")
    assert [p.ids[-1] for p in prefixes(bytes_, [code])] == bytes_.encode(" ", False)[0].tolist(), "a token of its own"
    [prefix] = prefixes(words, [code])
    assert prefix.ids[-prefix.own :] == words.encode("c1").tolist()[0]


def test_codes_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(probekit.UsageError, match="'A' and 'B' are the same tokens"):
        prefixes(languages.subject(), [Code("A", "c1 "), Code("B", "c1")])
    with pytest.raises(probekit.UsageError, match="has the token 300, but this model's tokens are 0 to"):
        prefixes(languages.subject(), [Code("A", None, (300,))])
    with pytest.raises(probekit.UsageError, match="has no tokens"):
        prefixes(languages.subject(), [Code("A", " ")])


rows = st.lists(st.floats(0, 50, allow_nan=False), min_size=2, max_size=6)


@given(rows)
def test_a_text_is_attributed_to_its_lowest_perplexity(nll: list[float]) -> None:
    found = attribute(nll)
    assert found.second is not None
    assert found.margin == sorted(nll)[1] - min(nll)
    assert (found.code is None) == (found.margin == 0)
    if found.code is not None:
        assert math.exp(nll[found.code]) == min(map(math.exp, nll))


@given(st.lists(rows.filter(lambda row: len(row) == 3) | st.just([1.0, 2.0, 3.0]), min_size=1, max_size=20), st.data())
def test_a_confusion_table_counts_every_text_once(nll: list[list[float]], data: st.DataObject) -> None:
    known = data.draw(st.lists(st.integers(0, 2), min_size=len(nll), max_size=len(nll)))
    counts = confusion(known, [attribute(row) for row in nll], 3)
    assert [sum(row) for row in counts] == [known.count(code) for code in range(3)]
    found = score(known, nll, [5] * len(nll))
    assert found.right == sum(counts[code][code] for code in range(3))
    # p(c|x) by its definition.
    expected = [
        math.exp(-5 * row[own]) / sum(math.exp(-5 * other) for other in row)
        for own, row in zip(known, nll, strict=True)
    ]
    assert found.probability == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    assert chance(known) == max(known.count(code) for code in range(3)) / len(known)


LOGITS = torch.tensor([[3.0, 1.0, -2.0]])


@pytest.mark.parametrize(("form", "expected"), [("unpenalised", 0.00590), ("literal", 0.00821), ("corrected", 0.00396)])
def test_the_printed_division_makes_a_token_likelier_that_it_should_penalise(form: str, expected: float) -> None:
    """Logits (3, 1, −2), the third generated before, θ = 1.2."""
    scores = LOGITS
    for processor in penalty(form, 1.2, 1):  # type: ignore[arg-type]
        scores = processor(torch.tensor([[0, 2]]), scores)
    assert round(float(scores.softmax(-1)[0, 2]), 5) == expected


def test_the_code_and_the_prompt_are_not_penalised() -> None:
    for form in ("literal", "corrected"):
        [processor] = penalty(form, 1.2, 2)  # type: ignore[arg-type]
        assert torch.equal(processor(torch.tensor([[0, 2]]), LOGITS), LOGITS)
    assert not torch.equal(RepetitionPenaltyLogitsProcessor(1.2)(torch.tensor([[0, 2]]), LOGITS.clone()), LOGITS)


def written(subject: probekit.Subject, samples: int, count: int, **options: object) -> torch.Tensor:
    chosen = ControlCodesOptions(penalty_form="unpenalised", samples=samples, **options)  # type: ignore[arg-type]
    context = probekit.Context()
    prefix = Prefix(None, [0], 0)
    every = generate(subject, [prefix], [[10, 11]], count, chosen, context, "before", Batches(context))
    return every["unpenalised", "none", 0]


def test_a_temperature_near_zero_is_greedy_and_one_is_the_models_own_distribution() -> None:
    subject = tiny_subject()
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.mul_(3)  # a distribution that is far from flat
    ids = torch.tensor([[0, 10, 11]])
    p = subject.capture(ids, ["logits"])["logits"][0, -1].double().softmax(-1)
    p[0] = 0  # the end of a text is never drawn
    p /= p.sum()
    assert written(subject, 1, 1).tolist() == [[int(p.argmax())]]
    assert set(written(subject, 50, 1, temperature=1e-4)[:, 0].tolist()) == {int(p.argmax())}
    drawn = torch.bincount(written(subject, 20_000, 1, temperature=1.0)[:, 0], minlength=len(p)).double()
    likely = p > 0.01
    assert int(likely.sum()) > 3
    deviations = (drawn / drawn.sum() - p).abs() / (p * (1 - p) / drawn.sum()).sqrt()
    assert float(deviations[likely].max()) < 5, "standard errors"
    assert set(written(subject, 500, 1, temperature=1.0, top_k=2)[:, 0].tolist()) == set(p.topk(2).indices.tolist())


def test_greedy_texts_are_argmax_of_penalised_logits_at_every_step() -> None:
    subject = languages.subject(seed=3)
    options = ControlCodesOptions(penalty_form=["corrected", "literal"], penalty=1.5)
    assert settings(options, 8)["do_sample"] is False
    context = probekit.Context()
    prefix = Prefix(Code("A", None, (33,)), [33], 1)
    every = generate(subject, [prefix], [[1, 2]], 8, options, context, "before", Batches(context))
    for form in ("corrected", "literal"):
        ids = [33, 1, 2]
        for token in every[form, "A", 0][0].tolist():
            x = subject.capture(torch.tensor([ids]), ["logits"])["logits"][0, -1]
            for seen in set(ids[3:]):
                x[seen] = x[seen] * 1.5 if form == "corrected" and x[seen] < 0 else x[seen] / 1.5
            assert token == int(x.argmax())
            ids.append(token)


def test_a_model_without_a_tokenizer_takes_codes_as_ids_and_says_so() -> None:
    subject = probekit.Subject(tiny_subject().model)
    ids = subject.check_ids([1, 2, 3])
    given_ = [probekit.Prompt("", ids, subject.tokens(ids))]
    result = ControlCodes(ControlCodesOptions(codes=IDS, new_tokens=3)).run(subject, given_)
    assert {row["code"] for row in result.tables["likelihood"]} == {"none", "five", "seven"}
    with pytest.raises(probekit.UsageError, match=r"no tokenizer.*ids = \[5\]"):
        ControlCodes(ControlCodesOptions()).run(subject, given_)


def test_codes_that_have_no_room_are_left_out_unless_they_are_asked_for() -> None:
    subject = tiny_subject()
    result = ControlCodes(ControlCodesOptions()).run(subject, prompts(subject))
    assert any("Translation" in note and "left out" in note for note in result.notes)
    assert {"Horror", "Legal"} <= {row["code"] for row in result.tables["codes"]}
    with pytest.raises(probekit.UsageError, match="no room for the code 'Translation'"):
        ControlCodes(ControlCodesOptions(only=["Horror", "Translation"])).run(subject, prompts(subject))
    with pytest.raises(probekit.UsageError, match="model's context is 64"):
        ControlCodes(ControlCodesOptions(only=["Horror"], new_tokens=60)).run(subject, prompts(subject))


def test_one_code_has_likelihoods_and_texts_but_no_attribution() -> None:
    subject = tiny_subject()
    result = ControlCodes(ControlCodesOptions(only=["Horror"], new_tokens=2)).run(subject, prompts(subject))
    result.encode()
    assert all(row["second"] is None for row in result.tables["attribution"])
    assert "Under the code 'Horror'" in result.finding


def test_a_model_that_predicts_no_tokens_is_refused() -> None:
    subject = probekit.Subject(tiny_subject().model.transformer)  # type: ignore[arg-type]
    ids = subject.check_ids([1, 2])
    with pytest.raises(probekit.UsageError, match="no logits"):
        ControlCodes(ControlCodesOptions(codes=IDS)).run(subject, [probekit.Prompt("", ids, subject.tokens(ids))])
