"""Texts to train on: how files are read, what is held out, what a text may hold, and what has room in the context."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM

import probekit
from probekit.testing import prompts, tiny_subject
from probekit_plugins.corpus import FEWEST, Corpus, Texts, corpus, end, start
from probekit_plugins.corpus_options import CorpusOptions
from probekit_plugins.lines import lines

Made = Callable[..., str]
SENTENCES = [f"The {a} is {b} of {c}." for a in ("sky", "sea") for b in ("full", "made", "afraid") for c in "xyzuvw"]


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return tiny_subject()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A file of texts: bytes, or lines."""

    def make(content: bytes | Sequence[str], name: str = "texts.txt") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else "\n".join(content).encode())
        return str(path)

    return make


def of(
    subject: probekit.Subject, given: Sequence[probekit.Prompt] = (), beside: int = 1, seed: int = 0, **options: Any
) -> Corpus:
    one = [probekit.Prompt("", torch.tensor([[1, 2, 4]]), ["a", "b", "c"])]
    return corpus(subject, given or one, CorpusOptions(**options), probekit.Context(seed), beside)


def both(found: Corpus) -> list[list[int]]:
    return found.training.rows() + found.held_out.rows()


def plain(
    vocabulary: int = 20, last: int | None = None, padding: int | None = None, context: int = 64
) -> probekit.Subject:
    """A model without a tokenizer."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=context,
        bos_token_id=None,
        eos_token_id=last,
        pad_token_id=padding,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return probekit.Subject(GPT2LMHeadModel(config).eval().requires_grad_(False), settled=True)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"\xef\xbb\xbfone\ntwo", ["one", "two"]),
        (b"one\r\ntwo\rthree\n", ["one", "two", "three"]),
        ("one\u2028still\u0085one\x0c\x1c.\ntwo".encode(), ["one\u2028still\u0085one\x0c\x1c.", "two"]),
        (b" with spaces \n", [" with spaces "]),
        (b"x" * 300_000 + b"\ny", ["x" * 300_000, "y"]),
    ],
)
def test_a_line_is_what_it_is_in_a_file_of_prompts(content: bytes, expected: list[str], made: Made) -> None:
    from probekit.runs.prompts import prompts_in

    path = made(content)
    assert lines(path) == expected
    if expected:
        assert list(prompts_in(Path(path))) == expected


def test_json_lines_give_their_texts_as_they_are(made: Made) -> None:
    texts = ["one\ntwo", " ", "\u2028", '"\\', "🧑\u200d🚀"]
    content = "\n\n".join(json.dumps({"text": text, "id": 3}) for text in texts).encode()
    assert lines(made(content, "texts.jsonl")) == texts
    assert lines(made(b"\xef\xbb\xbf" + content, "texts.ndjson")) == texts


@pytest.mark.parametrize(
    "bad",
    ['{"text": 3}', '{"text": null}', '{"text": ["a"]}', '{"texts": "a"}', '"a"', "3", "{", "[" * 100_000, "9" * 5000],
)
def test_a_json_line_that_has_no_text_is_named_by_its_number_in_the_file(bad: str, made: Made) -> None:
    path = made(['{"text": "a"}', "", bad], "texts.jsonl")
    with pytest.raises(probekit.UsageError, match=r"Line 3 of .* is no JSON object with a `text`"):
        lines(path)


def test_half_of_a_surrogate_pair_is_a_sentence_and_not_the_tokenizers_error(made: Made) -> None:
    path = made(['{"text": "\\ud83e\\uddd1"}', '{"text": "a \\ud800"}'], "texts.jsonl")
    with pytest.raises(probekit.UsageError, match=r"Line 2 of .* half of a surrogate pair"):
        lines(path)


@pytest.mark.parametrize("name", ["nowhere.txt", ".", "a\x00b", "x" * 5000])
def test_a_file_that_cannot_be_read_is_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(probekit.UsageError, match="cannot be read"):
        lines(name)


def test_a_file_that_is_not_utf_8_is_a_sentence(made: Made) -> None:
    with pytest.raises(probekit.UsageError, match="not UTF-8"):
        lines(made(b"good\n\xff\xfe bad"))


# --- what is held out -------------------------------------------------------------------------------------------------


def test_no_text_is_on_both_sides_and_the_split_is_the_same_whatever_the_order(
    subject: probekit.Subject, made: Made
) -> None:
    every = [*SENTENCES, *SENTENCES[::2], *SENTENCES[:5]]
    first, turned = (of(subject, texts=made(texts), held_out=0.3) for texts in (every, every[::-1]))
    held, training = ({tuple(row) for row in part.rows()} for part in (first.held_out, first.training))
    assert not held & training
    assert held | training == {tuple(subject.encode(text)[0].tolist()) for text in SENTENCES}
    assert len(first.held_out) == len(held) == round(0.3 * len(SENTENCES)), "each once"
    assert first.held_out.rows() == turned.held_out.rows()
    assert Counter(map(tuple, first.training.rows())) == Counter(map(tuple, turned.training.rows()))
    assert len(first.training) > len(training), "what is there twice is trained on twice"


def test_texts_that_are_the_same_once_they_are_cut_are_on_one_side(subject: probekit.Subject, made: Made) -> None:
    shortest = min(len(subject.encode(text)[0]) for text in SENTENCES)
    found = of(subject, texts=made([f"{text} {ending}" for text in SENTENCES for ending in "abc"]), length=shortest)
    assert len(found.training) > len({tuple(row) for row in found.training.rows()}), "they are the same"
    assert not {tuple(row) for row in found.held_out.rows()} & {tuple(row) for row in found.training.rows()}


def test_what_is_in_a_file_of_held_out_texts_is_not_trained_on(subject: probekit.Subject, made: Made) -> None:
    named = made([*SENTENCES[:6], *SENTENCES[:3]], "held.txt")
    found = of(subject, texts=made(SENTENCES + SENTENCES), held_out_texts=named)
    rows = [subject.encode(text)[0].tolist() for text in SENTENCES]
    assert found.held_out.rows() == rows[:6], "in order, each once"
    assert found.training.rows() == 2 * rows[6:]


def test_measured_texts_are_spread_over_all_that_are_held_out(subject: probekit.Subject, made: Made) -> None:
    named = {"texts": made(["something else"]), "held_out_texts": made(SENTENCES, "held.txt")}
    rows = [subject.encode(text)[0].tolist() for text in SENTENCES]
    assert of(subject, **named, measured=12).held_out.rows() == rows[::3]
    assert of(subject, **named, measured=35).held_out.rows() == rows[:35]
    assert of(subject, **named, measured=36).held_out.rows() == rows


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_whatever_the_share_three_texts_are_enough(share: float, subject: probekit.Subject, made: Made) -> None:
    found = of(subject, texts=made(SENTENCES[:3]), held_out=share)
    assert (len(found.training), len(found.held_out)) == (1, 2)


@pytest.mark.parametrize("content", [[], SENTENCES[:1], [SENTENCES[0]] * 20, SENTENCES[:2], ["", "<|endoftext|>"]])
def test_too_few_texts_are_a_sentence(content: list[str], subject: probekit.Subject, made: Made) -> None:
    with pytest.raises(probekit.UsageError, match=r"left to train on and \d to measure by; give more of them, no two"):
        of(subject, texts=made(content))


def test_a_file_that_is_held_out_whole_leaves_nothing_to_train_on(subject: probekit.Subject, made: Made) -> None:
    name = made(SENTENCES)
    with pytest.raises(probekit.UsageError, match=r"Of 36 texts .* 0 are left to train on and 36 to measure by"):
        of(subject, texts=name, held_out_texts=name)


def test_bad_held_out_texts_are_said_before_the_model_writes_any(
    subject: probekit.Subject, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it wrote texts")

    monkeypatch.setattr("probekit_plugins.corpus.written_pieces", never)
    with pytest.raises(probekit.UsageError, match="cannot be read"):
        of(subject, held_out_texts="nowhere.txt")
    with pytest.raises(probekit.UsageError, match="1 can be measured by; give two or more"):
        of(subject, held_out_texts=made(["the same"] * 9))


# --- what a text holds ------------------------------------------------------------------------------------------------


def wrapping() -> probekit.Subject:
    """A subject whose tokenizer puts tokens before and after a text: `<|endoftext|>` behind, token 1 before."""
    subject = tiny_subject()
    first = subject.tokenizer.convert_ids_to_tokens(1)  # type: ignore[union-attr]
    subject.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[union-attr]
        single=f"{first} $A <|endoftext|>", special_tokens=[(first, 1), ("<|endoftext|>", 0)]
    )
    return subject


def test_prompts_and_the_same_lines_of_a_file_are_the_same_texts(made: Made) -> None:
    subject = wrapping()
    given = prompts(subject, *SENTENCES)
    assert given[0].input_ids[0, [0, -1]].tolist() == [1, 0]
    assert (start(subject), end(subject)) == ([1], 0)
    from_prompts, from_file = of(subject, given), of(subject, texts=made(SENTENCES))
    assert from_prompts.source == "the prompts"
    for one, other in zip(
        (from_prompts.training, from_prompts.held_out), (from_file.training, from_file.held_out), strict=True
    ):
        assert one.rows() == other.rows()
    assert not {0, 1} & {token for row in both(from_prompts) for token in row}


def test_prompts_of_special_tokens_alone_are_no_texts() -> None:
    subject = wrapping()
    ids = [[1, 0], [1], [0], [1, 0, 5]]
    alone = [probekit.Prompt("", torch.tensor([row]), subject.tokens(row)) for row in ids]
    found = of(subject, [*alone, *prompts(subject, *SENTENCES)])
    assert len(both(found)) == len(SENTENCES)


def test_a_text_is_over_where_its_end_stands(subject: probekit.Subject, made: Made) -> None:
    ending = "<|endoftext|>"
    texts = [ending, f"{ending}{SENTENCES[0]}", *(f"{text}{ending}more" for text in SENTENCES[1:])]
    assert sorted(both(of(subject, texts=made(texts)))) == sorted(both(of(subject, texts=made(SENTENCES))))


def test_what_the_model_writes_ends_where_its_tokenizer_says(made: Made) -> None:
    subject = tiny_subject()
    subject.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    found = of(subject, pieces=200, length=16)
    assert found.source == "what the model writes itself"
    assert 0 not in {token for row in both(found) for token in row}
    assert min(map(len, both(found))) < 16
    assert both(found) == both(of(subject, pieces=200, length=16)), "the same seed, the same texts"
    assert both(found) != both(of(subject, pieces=200, length=16, seed=1))


def test_few_prompts_are_not_the_texts(subject: probekit.Subject) -> None:
    assert of(subject, prompts(subject, *SENTENCES[: FEWEST - 1]), pieces=10).source != "the prompts"
    assert of(subject, prompts(subject, *SENTENCES[:FEWEST])).source == "the prompts"


def test_random_texts_are_uniform_over_all_tokens_but_the_end() -> None:
    subject = plain(last=7)
    found = of(subject, texts="random", pieces=2000, length=10, shortest=4, measured=2000)
    counts = Counter(token for row in both(found) for token in row)
    assert set(counts) == set(range(20)) - {7}
    mean = sum(counts.values()) / 19
    assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5, "no token has another's share as well"
    assert Counter(map(len, both(found))).keys() == set(range(4, 11))


def test_random_texts_have_no_token_that_the_model_embeds_and_never_predicts() -> None:
    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, eos_token_id=25, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config).eval()
    model.lm_head = torch.nn.Linear(8, 20, bias=False)
    subject = probekit.Subject(model)
    assert end(subject) is None, "25 is never predicted"
    found = of(subject, texts="random", pieces=200, length=8)
    assert {token for row in both(found) for token in row} == set(range(20))
    given = [probekit.Prompt("", torch.tensor([[1, 2, number]]), ["a", "b", "c"]) for number in range(12, 24)]
    with pytest.raises(probekit.UsageError, match="The prompts have a token, 20, that this model does not predict"):
        of(subject, given)


def reading_padding() -> probekit.Subject:
    """A model that counts positions from the tokens that are not padding, 3."""
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=40,
        pad_token_id=3,
        bos_token_id=0,
        eos_token_id=2,
        is_decoder=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RobertaForCausalLM(config).eval()
    return probekit.Subject(model.requires_grad_(False), tiny_subject().tokenizer, settled=True)


def test_no_text_has_the_padding_token_of_a_model_that_reads_where_it_stands(made: Made) -> None:
    subject = reading_padding()
    found = of(subject, texts="random", pieces=300, length=8)
    assert {token for row in both(found) for token in row} == set(range(300)) - {0, 3}
    text = subject.text([3])
    assert subject.tokenizer(text)["input_ids"] == [3]  # type: ignore[misc]
    with pytest.raises(probekit.UsageError, match="have the padding token, 3"):
        of(subject, texts=made([*SENTENCES, f"one {text}"]))
    assert 3 in {token for row in both(of(plain(padding=3), texts="random", length=8)) for token in row}


@pytest.mark.parametrize(("vocabulary", "last"), [(2, None), (3, 2)])
def test_fewer_different_texts_than_are_needed_are_a_sentence(vocabulary: int, last: int | None) -> None:
    with pytest.raises(probekit.UsageError, match=r"Of 50 texts \(uniformly random tokens\) .* let longer ones be"):
        of(plain(vocabulary, last), texts="random", length=1, pieces=50)


def test_one_token_alone_makes_no_random_texts() -> None:
    with pytest.raises(probekit.UsageError, match="need two tokens to draw from"):
        of(plain(2, 1), texts="random", length=3)


def test_without_a_tokenizer_and_an_end() -> None:
    subject = plain()
    assert (start(subject), end(subject)) == ([0], None)
    assert (start(plain(last=7)), end(plain(last=7))) == ([7], 7)
    assert start(plain(last=99)) == [0], "no token of this model"
    with pytest.raises(probekit.UsageError, match=r"no tokenizer, so it cannot be given texts; leave out -o texts"):
        of(subject, texts="texts.txt")
    with pytest.raises(probekit.UsageError, match=r"leave out -o held_out_texts"):
        of(subject, texts="random", held_out_texts="texts.txt")


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [1, 5, 62, 63])
def test_texts_are_as_long_as_the_context_has_room_for(beside: int) -> None:
    longest = max(map(len, both(of(plain(), texts="random", pieces=20, length=None, beside=beside))))
    assert longest == 64 - beside
    assert of(plain(), texts="random", pieces=20, length=64 - beside, beside=beside).training.ids.shape[1] == longest


@pytest.mark.parametrize("make", [plain, wrapping])
def test_what_the_sentence_about_the_context_advises_works(make: Callable[[], probekit.Subject]) -> None:
    subject = make()
    with pytest.raises(probekit.UsageError, match=r"positions stand beside it") as error:
        of(subject, texts="random", pieces=20, length=64, beside=10)
    advised = int(str(error.value).split("length=")[1].split(")")[0])
    assert advised == 64 - 10 - (len(start(subject)) if subject.tokenizer else 0)
    of(subject, texts="random", pieces=20, length=advised, beside=10)
    for length in (None, 1):
        with pytest.raises(probekit.UsageError, match="no room for a text"):
            of(subject, texts="random", pieces=20, length=length, beside=64)


def test_texts_of_one_token_are_not_written_without_a_beginning() -> None:
    given = [probekit.Prompt("", torch.tensor([[5]]), ["x"])]
    with pytest.raises(probekit.UsageError, match=r"with one token they are all the same"):
        of(plain(), given, length=1)
    assert set(map(len, both(of(wrapping(), pieces=60, length=1)))) == {1}


def test_a_shortest_text_that_is_longer_than_the_longest_is_refused() -> None:
    with pytest.raises(ValueError, match="`shortest` is at most `length`"):
        CorpusOptions(shortest=5, length=4)
    CorpusOptions(shortest=5, length=5)


def test_rows_mask_and_tokens_agree_with_the_texts_they_were_made_of() -> None:
    rows = [[5, 6, 7, 8], [1], [], [0, 0]]
    texts = Texts.of(rows)
    assert texts.rows() == rows
    assert texts.tokens == int(texts.mask.sum()) == 7
    assert texts.mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    chosen = texts[torch.tensor([3, 1, 3])]
    assert chosen.rows() == [[0, 0], [1], [0, 0]]
    assert chosen.ids.shape == (3, 2), "no longer than the longest"
    assert texts[:0].rows() == Texts.of([]).rows() == []
