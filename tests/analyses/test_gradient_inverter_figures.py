"""What the inverter says of what it found: next tokens of texts and of truncated models, nearness and frequency."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import probekit
from probekit.errors import UsageError
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions
from probekit_plugins.gradient_inverter.inversion import Inversion

REFERENCE = probekit.Plugins(
    points=[EntryPoint("reference-networks", "probekit_plugins.reference_networks", "probekit")]
)
IDS = [5, 17, 2, 40]
TEXT = "The sky is blue and the sea is green. " * 3
RECOVERED = {"noise_share": 0.0, "target_share": 1.0, "steps": 1, "learning_rate": 1e-9}


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    """Without a tokenizer; a row of zeros, two rows that are the same, and large blocks, so that inputs matter."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=24, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
        model.transformer.wte.weight[7] = 0
        model.transformer.wte.weight[9] = model.transformer.wte.weight[3]
    return probekit.Subject(model)


@pytest.fixture
def tiny(tiny_gpt2: Callable[..., Path]) -> probekit.Subject:
    return probekit.load(str(tiny_gpt2(initializer_range=0.3)))


def prompt_of(subject: probekit.Subject, ids: list[int]) -> probekit.Prompt:
    return probekit.Prompt("", subject.check_ids(ids), subject.tokens(ids))


def inverted(subject: probekit.Subject, *prompts: list[int], **options: Any) -> probekit.Result:
    analysis = GradientInverter(GradientInverterOptions(**options), probekit.Context())
    return analysis.run(subject, [prompt_of(subject, ids) for ids in prompts])


def found_ids(result: probekit.Result, rank: int = 0) -> list[list[int]]:
    """The candidates of a rank, one list for each restart."""
    return [sequence.ids for sequence in result.sequences["recovered"] if sequence.labels["rank"] == rank]


def column(result: probekit.Result, name: str, table: str = "restarts") -> list[Any]:
    return [row[name] for row in result.tables[table]]


def next_token(model: Any, ids: list[int]) -> int:
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


# --- the text, tokenised again ---------------------------------------------------------------------------------------


def test_the_next_token_of_the_text_is_that_of_its_own_tokens(tiny: probekit.Subject) -> None:
    """Decoded and tokenised again by hand; most texts come to other tokens than were found."""
    ids = tiny.encode("The sky is blue.")[0].tolist()
    result = inverted(tiny, ids, steps=1, restarts=24, start_sigma=1.0)
    again = [tiny.tokenizer(tiny.tokenizer.decode(found))["input_ids"] for found in found_ids(result)]
    assert any(len(one) != len(ids) for one in again)
    wanted = next_token(tiny.model, ids)
    expected = [next_token(tiny.model, one) == wanted if len(one) <= 32 else None for one in again]
    assert column(result, "next_token_of_text") == expected
    assert {True, False} <= set(expected) | set(column(result, "next_token_of_tokens"))


def recorded_texts(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of every single row that the model is run on for its next token, from now on; the prompt's come first."""
    runs: list[list[int]] = []
    capture = subject.capture

    def recording(input_ids: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if len(input_ids) == 1:
            runs.append(input_ids[0].tolist())
        return capture(input_ids, *arguments, **named)

    monkeypatch.setattr(subject, "capture", recording)
    return runs


@pytest.mark.parametrize("special_tokens", [True, False])
def test_special_tokens_stand_around_a_text_as_around_the_prompt(
    special_tokens: bool, tiny_gpt2: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And texts that are the same are computed once."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    subject = probekit.Subject(AutoModelForCausalLM.from_pretrained(tiny_gpt2()), tokenizer)
    ids = subject.encode("The sky is blue.", special_tokens)[0].tolist()
    assert (ids[0] == 0) == (ids[-1] == 0) == special_tokens
    runs = recorded_texts(subject, monkeypatch)
    result = inverted(subject, ids, restarts=3, **RECOVERED)
    assert found_ids(result) == [ids] * 3
    assert runs == [ids, ids], "the prompt, then the one text of all three restarts"
    assert column(result, "next_token_of_text") == [True] * 3


def test_a_text_that_cannot_be_read_again_has_no_next_token(
    subject: probekit.Subject, tiny_gpt2: Callable[..., Path]
) -> None:
    assert column(inverted(subject, IDS, steps=1), "next_token_of_text") == [None] * 8, "there is no tokenizer"
    short = probekit.load(str(tiny_gpt2(n_positions=6)))
    ids = list(range(50, 54))
    result = inverted(short, ids, steps=1, restarts=16, start_sigma=1.0)
    lengths = [len(short.tokenizer(short.text(found))["input_ids"]) for found in found_ids(result)]
    assert any(length > 6 for length in lengths)
    assert any(length <= 6 for length in lengths)
    assert [verdict is None for verdict in column(result, "next_token_of_text")] == [n > 6 for n in lengths]
    larger = probekit.load(str(tiny_gpt2(vocab_size=310)))
    beyond = inverted(larger, IDS, steps=1, vocabulary=[305, 306], top_k=1)
    assert column(beyond, "text") == [""] * 8
    assert column(beyond, "next_token_of_text") == [None] * 8
    off = inverted(larger, IDS, steps=1, next_token=False)
    for name in ("next_token_of_text", "next_token_of_tokens", "next_token_of_embeddings"):
        assert column(off, name) == [None] * 8


# --- the truncated model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["model", "without-norm"])
def test_the_truncated_next_token_is_that_of_a_hand_written_model(subject: probekit.Subject, head: str) -> None:
    model = subject.model

    def choice(embeddings: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            states = model.transformer.h[0](embeddings + model.transformer.wpe.weight[: len(IDS)])
            states = states[0] if isinstance(states, tuple) else states
            states = model.transformer.ln_f(states) if head == "model" else states
            return model.lm_head(states[:, -1]).argmax(-1)

    options: dict[str, Any] = {"head": head, "steps": 20, "restarts": 24, "shift_sigma": [0.02, 0.01]}
    result = inverted(subject, IDS, next_token=False, **options)
    wanted = choice(subject.embed(torch.tensor([IDS])))
    of_embeddings = (choice(result.tensors["0/block.0/embeddings"]) == wanted).tolist()
    of_tokens = (choice(subject.embed(torch.tensor(found_ids(result)))) == wanted).tolist()
    assert set(of_embeddings + of_tokens) == {True, False}
    assert of_embeddings != of_tokens
    assert column(result, "truncated_next_token_of_embeddings") == of_embeddings
    assert column(result, "truncated_next_token_of_tokens") == of_tokens
    inversion = Inversion(
        subject, [prompt_of(subject, IDS)], "block.0", None, GradientInverterOptions(**options), probekit.Context()
    )
    for row, sigma in zip(result.tables["shifts"], options["shift_sigma"], strict=True):
        kept = (choice(inversion.shifted_losses(sigma)[0]) == wanted).double().mean()
        assert row["truncated_next_token_kept"] == pytest.approx(float(kept))
        assert row["next_token_kept"] is None


def test_without_a_head_there_is_no_truncated_next_token(subject: probekit.Subject) -> None:
    result = inverted(subject, IDS, steps=1)
    assert column(result, "truncated_next_token_of_embeddings") == [None] * 8
    assert column(result, "truncated_next_token_of_tokens") == [None] * 8
    assert column(result, "truncated_next_token_kept", "shifts") == [None]


# --- another model that is asked -------------------------------------------------------------------------------------


def test_a_network_without_a_head_asks_the_model_whose_embedding_it_has() -> None:
    network, demo = probekit.load("fc-narrow,tokens=6,embedding=demo", plugins=REFERENCE), probekit.load("demo")
    ids = demo.encode("The sky is blue and")[0].tolist()[:6]
    assert len(ids) == 6
    options: dict[str, Any] = {"steps": 30, "restarts": 8, "sites": "block.1"}
    alone = inverted(network, ids, **options)
    assert column(alone, "next_token_of_tokens") == [None] * 8
    result = inverted(network, ids, next_token_model="demo", **options)
    wanted = next_token(demo.model, ids)
    with torch.no_grad():
        logits = demo.layer_map("logits")(result.tensors["0/block.1/embeddings"])
    assert column(result, "next_token_of_embeddings") == (logits[:, -1].argmax(-1) == wanted).tolist()
    of_tokens = [next_token(demo.model, found) == wanted for found in found_ids(result)]
    assert column(result, "next_token_of_tokens") == of_tokens
    of_texts = [next_token(demo.model, demo.encode(demo.text(found))[0].tolist()) for found in found_ids(result)]
    assert column(result, "next_token_of_text") == [found == wanted for found in of_texts]
    assert result.tables["shifts"][0]["next_token_kept"] is not None
    assert any("'demo', not of the inverted model" in note for note in result.notes)


def test_a_model_with_another_embedding_is_asked_about_tokens_only(
    tiny: probekit.Subject, tiny_gpt2: Callable[..., Path]
) -> None:
    other = str(tiny_gpt2(initializer_range=0.3, seed=1))
    ids = tiny.encode("The sky is blue.")[0].tolist()
    result = inverted(tiny, ids, steps=1, restarts=12, start_sigma=1.0, next_token_model=other)
    model = probekit.load(other).model
    expected = [next_token(model, found) == next_token(model, ids) for found in found_ids(result)]
    assert column(result, "next_token_of_tokens") == expected
    assert column(result, "next_token_of_embeddings") == [None] * 12
    assert column(result, "next_token_kept", "shifts") == [None]
    assert any("embeds tokens otherwise" in note for note in result.notes)


def test_a_model_that_does_not_agree_is_refused_in_a_sentence(
    tiny: probekit.Subject, tiny_gpt2: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inversion, "descend", lambda _: pytest.fail("the descent has begun"))
    refused = {
        "has a vocabulary of 310, the inverted one a vocabulary of": tiny_gpt2(vocab_size=310),
        "has embeddings of width 16, the inverted one embeddings of width 32": tiny_gpt2(n_embd=16),
        "the model's context is 3; shorten it": tiny_gpt2(n_positions=3),
    }
    for sentence, folder in refused.items():
        with pytest.raises(UsageError, match=sentence):
            inverted(tiny, IDS, next_token_model=str(folder))
    relabelled = AutoTokenizer.from_pretrained(tiny_gpt2())
    relabelled.add_tokens(["green."])
    with pytest.raises(UsageError, match="has other tokens than the inverted one"):
        inverted(probekit.Subject(tiny.model, relabelled), IDS, next_token_model=str(tiny_gpt2()))
    with pytest.raises(ValueError, match="leave out next_token=false"):
        GradientInverterOptions(next_token_model="demo", next_token=False)


# --- candidates by rank ----------------------------------------------------------------------------------------------


def test_ranks_are_those_of_an_independent_computation(subject: probekit.Subject) -> None:
    """In fp64 and token by token: a row of zeros, rows that are the same, and prompts of two lengths among them."""
    prompts = [[5, 3, 7, 40], [9, 33]]
    result = inverted(subject, *prompts, steps=2, restarts=2, top_k=60, next_token=False)
    W = subject.embedding_matrix.double().numpy()

    def cosine(one: int, other: int) -> float:
        norms = float(numpy.linalg.norm(W[one]) * numpy.linalg.norm(W[other]))
        return float(W[one] @ W[other]) / norms if norms else 0.0

    near = {truth: numpy.array([cosine(index, truth) for index in range(60)]) for truth in {*prompts[0], *prompts[1]}}

    def percentile(index: int, truth: int) -> float:
        value = near[truth][index]
        equal = numpy.isclose(near[truth], value, atol=1e-12)
        return float((((near[truth] < value) & ~equal).sum() + equal.sum() / 2) / 60)

    rows = {(row["prompt"], row["restart"], row["rank"]): row for row in result.tables["ranks"]}
    assert len(rows) == len(result.tables["ranks"]) == 2 * 2 * 60
    for sequence in result.sequences["recovered"]:
        labels = sequence.labels
        truth = prompts[int(labels["prompt"] or 0)]
        row = rows[labels["prompt"], labels["restart"], labels["rank"]]
        pairs = list(zip(sequence.ids, truth, strict=True))
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        assert row["right"] == pytest.approx(1 - len(wrong) / len(pairs))
        for chosen, ending in ((pairs, ""), (wrong, "_when_wrong")):
            for name, figure in (("cosine", cosine), ("percentile", percentile)):
                if not chosen:
                    assert row[name + ending] is None
                    continue
                expected = sum(figure(*pair) for pair in chosen) / len(chosen)
                assert row[name + ending] == pytest.approx(expected, abs=1e-6)
    of_all = [float(row["percentile"] or 0) for row in result.tables["ranks"]]
    assert sum(of_all) / len(of_all) == pytest.approx(0.5), "over the whole vocabulary, as for random tokens"


def test_recovered_tokens_are_right_and_never_wrong(subject: probekit.Subject) -> None:
    row = inverted(subject, IDS, restarts=1, **RECOVERED).tables["ranks"][0]
    assert (row["rank"], row["right"], row["cosine"]) == (0, 1.0, pytest.approx(1.0))
    assert row["percentile"] == pytest.approx(1 - 0.5 / 60)
    assert row["cosine_when_wrong"] is None
    assert row["percentile_when_wrong"] is None


# --- frequencies -----------------------------------------------------------------------------------------------------


def test_frequencies_are_counted_in_the_text(tiny: probekit.Subject, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    ids = tiny.encode("The sky is Lily.")[0].tolist()
    counts = Counter(tiny.tokenizer(TEXT)["input_ids"])
    size, V = counts.total(), tiny.vocabulary
    assert 0 < sum(index in counts for index in ids) < len(ids)

    def seen(chosen: list[int]) -> float:
        return sum(index in counts for index in chosen) / len(chosen)

    def log10(chosen: list[int]) -> float:
        smoothed = [1e6 * (counts[index] + 0.5) / (size + 0.5 * V) for index in chosen]
        return sum(map(math.log10, smoothed)) / len(chosen)

    result = inverted(tiny, ids, [3, 4], steps=40, restarts=2, sites="block.1", frequencies=str(tmp_path / "text.txt"))
    found = [sequence.ids for sequence in result.sequences["recovered"]]
    assert column(result, "seen", "ranks") == pytest.approx([seen(chosen) for chosen in found])
    assert column(result, "log10_frequency", "ranks") == pytest.approx([log10(chosen) for chosen in found])
    assert len(set(column(result, "seen", "ranks"))) > 1
    everything = list(range(V))
    expected = {
        "random_seen": seen(everything),
        "random_log10_frequency": log10(everything),
        "prompt_seen": (seen(ids) + seen([3, 4])) / 2,
        "prompt_log10_frequency": (log10(ids) + log10([3, 4])) / 2,
    }
    assert {name: result.metrics[f"block.1/{name}"] for name in expected} == pytest.approx(expected)
    without = inverted(tiny, ids, steps=1)
    assert set(column(without, "seen", "ranks")) == set(column(without, "log10_frequency", "ranks")) == {None}
    assert "block.0/random_seen" not in without.metrics


def test_a_bad_text_is_one_sentence_before_the_descent(
    tiny: probekit.Subject, subject: probekit.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inversion, "descend", lambda _: pytest.fail("the descent has begun"))
    (tmp_path / "latin.txt").write_bytes("Él está".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    for name, sentence in (("nowhere", "cannot be read"), ("latin", "is not UTF-8"), ("empty", "has no tokens")):
        with pytest.raises(UsageError, match=sentence):
            inverted(tiny, IDS, frequencies=str(tmp_path / f"{name}.txt"))
    with pytest.raises(UsageError, match="no tokenizer, so it cannot be given a text; leave out -o frequencies"):
        inverted(subject, IDS, frequencies=str(tmp_path / "empty.txt"))


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_the_figures_and_does_without_them(tiny: probekit.Subject, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = GradientInverterOptions(steps=2, restarts=2, head="model", frequencies=str(tmp_path / "text.txt"))
    analysis = GradientInverter(options, probekit.Context())

    def tables() -> dict[str, Any]:
        for name, content in result.encode().items():
            (tmp_path / name).write_bytes(content)
        page = probekit.Page("gradient-inverter")
        analysis.report(probekit.Result.read(tmp_path), page)
        return {block["caption"]: block for block in page.to_json()["blocks"] if "columns" in block}

    result = analysis.run(tiny, [prompt_of(tiny, tiny.encode("The sky is blue.")[0].tolist())])
    shown = tables()
    (candidates,) = (table for caption, table in shown.items() if caption.startswith("Candidates by rank"))
    assert [row[0] for row in candidates["rows"]] == [
        *(f"top {rank + 1}" for rank in range(5)),
        "random tokens",
        "the prompts' own",
    ]
    assert "log₁₀ of occurrences per million" in candidates["columns"]
    (kept,) = (caption for caption in shown if caption.startswith("All restarts: what keeps the model's next token"))
    assert {"its text, tokenised again", "its embeddings, in O"} <= set(shown[kept]["columns"])
    # As a run from before these figures was saved.
    del result.tables["ranks"]
    for row in result.tables["restarts"]:
        del row["next_token_of_text"], row["truncated_next_token_of_tokens"]
    shown = tables()
    assert not any(caption.startswith("Candidates by rank") for caption in shown)
    assert "its text, tokenised again" not in shown[kept]["columns"]
