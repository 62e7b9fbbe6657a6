"""Training of the embedded model, in small: its texts, its tokenizer, its loss, and the folder that it writes."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit.models.demo import train


def generated_text(sentences: int) -> str:
    """Sentences of a small grammar, in paragraphs."""
    choose = random.Random(0).choice
    words = [["The old man", "A little girl", "The sea"], ["saw", "loved", "forgot"], ["the sky", "a ship", "the wind"]]
    made = [" ".join(choose(part) for part in words) + "." for _ in range(sentences)]
    return "\n\n".join(" ".join(made[start : start + 5]) for start in range(0, sentences, 5))


def test_a_distributors_header_and_footer_are_left_out(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(
        "\ufeffThe Project Gutenberg eBook of X\nterms of use\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
        "CHAPTER I\n\nIt was “late”—and\nit was   ‘dark’.\n\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence\n",
        encoding="utf-8",
    )
    assert train.read_text(book) == "CHAPTER I\n\nIt was \"late\"--and it was 'dark'."


def test_prose_is_unwrapped_and_a_play_keeps_its_lines(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "A paragraph\nof two lines.\n\nFirst Citizen:\nBefore we proceed,\nhear me speak.\n  \nAll:\nSpeak.\n"
    )
    assert train.read_text(text) == (
        "A paragraph of two lines.\n\nFirst Citizen:\nBefore we proceed,\nhear me speak.\n\nAll:\nSpeak."
    )


def test_every_string_has_an_encoding_and_round_trips() -> None:
    tokenizer = train.train_tokenizer([generated_text(50)], 300)
    assert len(tokenizer) == 300
    for text in ("The sea saw a ship.", "naïve ☃ 🙂", " two  spaces\n\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_held_out_loss_falls_and_is_the_mean_over_tokens(tmp_path: Path) -> None:
    tokenizer = train.train_tokenizer([generated_text(300)], 300)
    corpus = train.Corpus.build([generated_text(300)], tokenizer)
    assert len(corpus.held_out) >= 64
    assert len(corpus.held_out) < len(corpus.train) / 10
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    untrained = train.held_out_loss(model, corpus, 16)
    assert untrained == pytest.approx(math.log(300), abs=0.3)
    training = train.Training(steps=40, batch=8, learning_rate=1e-2, seed=0)
    training.run(model, corpus, 16, tmp_path, report_every=20)
    assert [step for step, _ in training.history] == [20, 40]
    assert training.history[1][1] < training.history[0][1] < untrained - 0.5
    windows = corpus.held_out[: len(corpus.held_out) // 16 * 16].view(-1, 16)
    model.eval()
    with torch.no_grad():
        chances = model(windows).logits[:, :-1].log_softmax(-1)
    expected = -chances.gather(-1, windows[:, 1:, None]).mean()
    assert training.history[1][1] == pytest.approx(float(expected), rel=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    training = train.Training(steps=100, batch=1, learning_rate=1.0, seed=0)
    rates = [training.rate_at(step) for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.002)


def test_the_command_writes_a_checkpoint_that_loads_and_a_card_that_states_its_facts(tmp_path: Path) -> None:
    book, output = tmp_path / "an-old_book.txt", tmp_path / "checkpoint"
    book.write_text(generated_text(300))
    sizes = {"layers": 1, "width": 32, "vocabulary": 300, "positions": 16, "steps": 6, "batch": 4, "seed": 3}
    small = [f"--{name}={value}" for name, value in sizes.items()]
    with torch.random.fork_rng(devices=[]):
        ended = CliRunner().invoke(train.main, [str(book), "--output", str(output), *small], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert re.search(r"step 6/6: training loss \d\.\d{3}, held-out \d\.\d{3}", ended.output)

    subject = probekit.load(str(output))
    assert subject.context == 16
    assert subject.vocabulary == 300
    assert subject.facts["dtype"] == "float32"
    ids = subject.encode("The sea saw")
    assert subject.text(ids) == "The sea saw"
    assert subject.capture(ids, ["block.0"])["block.0"].shape == (1, ids.shape[1], 32)

    card = (output / "README.md").read_text(encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    assert f"A GPT-2 of {parameters:,} parameters (1 blocks × 32, 1 heads, 16 positions, vocabulary\n300" in card
    assert "| public-domain text: an old book |" in card
    assert "6 steps × 4 windows × 16 tokens" in card
    assert "seed 3" in card
    corpus = train.Corpus.build([train.read_text(book)], subject.tokenizer)
    assert f"{len(corpus.train):,} for training, {len(corpus.held_out):,} held out" in card
    stated = re.search(r"\| held-out loss \| (\d\.\d{3}) nats a token, (\d\.\d{3}) bits a character", card)
    assert stated
    loss = train.held_out_loss(subject.model, corpus, 16)  # type: ignore[arg-type]
    assert float(stated[1]) == pytest.approx(loss, abs=6e-4)
    assert "Greedy: *The old" in card
    assert "Sampled (temperature 0.8, top 40, seed 0): *The old" in card
