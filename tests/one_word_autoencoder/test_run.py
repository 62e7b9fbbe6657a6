"""Whole runs: what must come back, what must not, what is refused, and what a killed run goes on with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import probekit
from probekit.testing import fingerprint
from tests.one_word_autoencoder.small import RANDOM, gpt2, llama, run

# A vocabulary of 16 and texts of 2 tokens, a few seconds.
QUICK = RANDOM | {"length": 2, "pieces": 600, "held_out": 0.2, "steps": 200, "batch": 32, "learning_rate": 4e-3}
LITTLE: dict[str, Any] = {
    "texts": "random",
    "length": 5,
    "shortest": 2,
    "pieces": 30,
    "steps": 3,
    "batch": 4,
    "seeds": 2,
    "segment": 2,
}


@pytest.fixture(scope="module")
def quick() -> probekit.Result:
    return run(gpt2(16, 32, 2), **QUICK, repulsion="none,info-nce,coding-rate-as-printed")


def setting(result: probekit.Result, name: str) -> dict[str, Any]:
    [row] = [row for row in result.tables["settings"] if row["setting"] == name]
    return row


def test_random_texts_come_back_from_one_vector_and_from_no_other(quick: probekit.Result) -> None:
    row = setting(quick, "1 vector")
    assert row["exact"] > 0.9
    assert row["exact_shuffled"] < 0.05
    assert row["exact_untrained"] < 0.05
    assert row["nll_shuffled"] > row["nll"] + 2


def test_a_repulsion_spreads_the_vectors_and_texts_still_come_back(quick: probekit.Result) -> None:
    row = setting(quick, "1 vector, info-nce")
    assert row["exact"] > 0.4
    assert row["exact_shuffled"] < 0.05
    assert row["cosine"] < 0.05


def test_the_coding_rate_as_printed_collapses_all_texts_into_one(quick: probekit.Result) -> None:
    row = setting(quick, "1 vector, coding-rate-as-printed")
    assert row["cosine"] > 0.99
    assert row["exact"] < 0.05
    assert any("has to fail" in note for note in quick.notes)


def test_segments_read_one_after_the_other_come_back_from_the_last_vector() -> None:
    row = setting(run(gpt2(16, 32, 2), **QUICK | {"steps": 160}, segment=1, continuation=0), "1 vector")
    assert row["exact"] > 0.8
    assert row["exact_shuffled"] < 0.05


def test_lora_trains_adapters_alone_and_the_model_as_it_is_decodes() -> None:
    subject = gpt2(16, 32, 2)
    before = fingerprint(subject.model)
    result = run(subject, **QUICK | {"steps": 60}, training="lora", rank=4)
    row = result.tables["trained"][0]
    full = sum(parameter.numel() for parameter in subject.model.parameters())
    assert row["parameters"] < full / 2
    assert fingerprint(subject.model) == before
    assert row["nll"] < row["nll_shuffled"]


@pytest.mark.parametrize(
    ("subject", "vectors"), [(gpt2(end=0), {1: "1 vector", 2: "2 vectors"}), (llama(), {2: "2 vectors"})]
)
def test_figures_are_complete_and_the_same_with_the_same_seed(
    subject: probekit.Subject, vectors: dict[int, str]
) -> None:
    options = LITTLE | {
        "pieces": 40,
        "held_out": 0.4,
        "batch": 16,
        "vectors": list(vectors),
        "repulsion": "info-nce",
        "losses": "alternated",
    }
    first, second = (run(subject, **options) for _ in range(2))
    assert {name: value for name, value in first.encode().items() if name != "seconds"} == second.encode()
    settings = [f"{name}, info-nce" for name in vectors.values()]
    assert [row["setting"] for row in first.tables["settings"]] == settings
    held = first.metrics["texts_held_out"]
    for table in ("by_length", "by_surprisal"):
        for name in settings:
            rows = [row for row in first.tables[table] if (row["setting"], row["seed"]) == (name, 1)]
            assert sum(row["texts"] for row in rows) == held
            [trained] = [row for row in first.tables["trained"] if (row["setting"], row["seed"]) == (name, 1)]
            assert sum(row["texts"] * row["exact"] for row in rows) / held == pytest.approx(trained["exact"])
    assert {row["segment"] for row in first.tables["memory"]} == {2, 3}


def test_another_seed_of_the_run_gives_other_weights_and_texts() -> None:
    subject = gpt2(end=0)
    first, second = (run(subject, probekit.Context(seed), **LITTLE | {"seeds": 1}) for seed in (0, 1))
    assert first.tables["losses"] != second.tables["losses"]


def test_surprisal_is_that_of_the_whole_text_under_the_model_as_it_was() -> None:
    """Against transformers' own loss, with start and end."""
    subject = gpt2(end=0)
    result = run(subject, **LITTLE | {"shortest": None, "seeds": 1})
    [*texts] = [sequence.ids for sequence in result.sequences["texts"]]
    assert all(ids[-1] == 0 and len(ids) == 6 for ids in texts), "a text, and what ends it"
    ids = torch.tensor([[0, *ids] for ids in texts])
    with torch.no_grad():
        expected = float(subject.model(input_ids=ids, labels=ids).loss)
    assert len(texts) == result.metrics["texts_held_out"]
    assert result.metrics["nats_per_token"] == pytest.approx(expected, rel=1e-5)


def test_the_memory_of_a_model_that_was_not_trained_is_compared_with_that_model() -> None:
    """What truncation and the whole context are worth, against transformers."""
    subject = gpt2()
    result = run(subject, **LITTLE | {"shortest": None, "length": 4, "seeds": 1})
    texts = torch.tensor([sequence.ids for sequence in result.sequences["texts"]])
    assert len(texts) == result.metrics["texts_held_out"]
    [row] = result.tables["memory"]
    start = torch.zeros(len(texts), 1, dtype=torch.long)

    def of(before: torch.Tensor) -> float:
        ids = torch.cat([start, before, texts[:, 2:]], 1)
        with torch.no_grad():
            likelihood = subject.model(input_ids=ids).logits[:, -3:-1].log_softmax(-1)
        return -float(likelihood.gather(-1, texts[:, 2:, None]).mean())

    assert row["whole context, as it was"] == pytest.approx(of(texts[:, :2]), rel=1e-5)
    assert row["truncation, as it was"] == pytest.approx(of(texts[:, 1:2]), rel=1e-5)
    assert row["no memory, as it was"] == pytest.approx(of(texts[:, :0]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"site": "block.9"}, "There is no site"),
        ({"site": "blocks"}, "name one of them"),
        ({"prompts": "source"}, "has no tokenizer"),
        ({"length": 60}, "the model's context"),
        ({"vectors": 45, "length": 4}, "positions stand beside it"),
        ({"texts": "nowhere.txt"}, "has no tokenizer"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_before_anything_is_trained(
    options: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit_plugins.one_word_autoencoder.run.train", None)
    with pytest.raises(probekit.UsageError, match=sentence):
        run(gpt2(), **LITTLE | options)


@pytest.mark.parametrize(
    "options", [{"vectors": "1,1"}, {"repulsion": "none,none"}, {"vectors": "0"}, {"repulsion": "sin"}, {"rank": 0}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)) + "|each"):
        probekit.Plugins().analysis("one-word-autoencoder").options_model(**options)


def test_a_model_with_one_block_is_encoded_there() -> None:
    result = run(gpt2(layers=1), **LITTLE | {"seeds": 1})
    assert result.metrics["site"] == "block.0"


def test_the_page_shows_texts_with_what_came_back_and_every_figure(quick: probekit.Result) -> None:
    kind = probekit.Plugins().analysis("one-word-autoencoder")
    names = ["none", "info-nce", "coding-rate-as-printed"]
    analysis = kind(kind.options_model(**QUICK | {"repulsion": names}))
    page = probekit.Page("page")
    quick.tensors = {name: tensor.numpy() for name, tensor in quick.tensors.items()}
    analysis.report(quick, page)
    shown = json.dumps(page.to_json(), ensure_ascii=False)
    assert "NaN" not in shown
    rows = next(block for block in page.blocks if block["type"] == "tokens")["rows"]
    exact = [row for row in rows[1::2] if row["note"] == "exact"]
    assert exact
    assert all(token["mark"] == "right" for row in exact for token in row["tokens"])
    kinds = [block["type"] for block in page.blocks]
    assert kinds.count("heatmap") == 3
    assert kinds.count("tokens") == 3
