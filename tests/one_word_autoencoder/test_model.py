"""The autoencoder itself: what stands where, what gradients reach, and that the subject stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import probekit
from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions
from probekit_plugins.one_word_autoencoder.model import OneWord
from probekit_plugins.one_word_autoencoder.objective import encoded, loss, nll, with_end
from probekit_plugins.one_word_autoencoder.wording import wording
from tests.one_word_autoencoder.small import gpt2, llama

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 10, 11, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


def made(subject: probekit.Subject, vectors: int = 2, prompts: str = "none", **options: Any) -> OneWord:
    given = OneWordAutoencoderOptions(**options)
    return OneWord(subject, wording(subject, prompts, vectors), "block.-2", vectors, given, 5)


def alone(row: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = int(MASK[row].sum())
    return IDS[row : row + 1, :length], MASK[row : row + 1, :length]


@pytest.mark.parametrize("subject", [gpt2(), llama()], ids=["gpt2", "llama"])
@pytest.mark.parametrize("training", ["full", "lora"])
def test_a_text_in_a_padded_batch_is_what_it_is_alone(subject: probekit.Subject, training: str) -> None:
    model = made(subject, segment=2, training=training)
    with torch.no_grad():
        together = encoded(model, IDS, MASK, 2)[-1]
        logits = model.decode(together, IDS, MASK)
        for row in range(3):
            ids, mask = alone(row)
            own = encoded(model, ids, mask, 2)[-1]
            torch.testing.assert_close(own[0], together[row], atol=1e-5, rtol=1e-4)
            found = model.decode(own, ids, mask)
            torch.testing.assert_close(found[0], logits[row, : found.shape[1]], atol=1e-4, rtol=1e-4)


def test_vectors_are_read_behind_the_text_and_decoded_in_front_of_it() -> None:
    """Against a plain forward of the same copy, by transformers."""
    model = made(gpt2())
    copy = model.encoder.model
    table = copy.get_input_embeddings()
    ids, mask = alone(2)
    with torch.no_grad():
        embeddings = torch.cat([table(ids), model.slots[None]], 1)
        states = copy(inputs_embeds=embeddings, output_hidden_states=True).hidden_states[2]  # after block 1 of 3
        expected = model.linear(model.norm(states[:, -2:]))
        vectors = model.encode(ids, mask)
        torch.testing.assert_close(vectors, expected)
        logits = copy(inputs_embeds=torch.cat([vectors, table(ids)], 1)).logits[:, 1:]
        torch.testing.assert_close(model.decode(vectors, ids, mask), logits)


def test_a_text_that_has_ended_keeps_its_vectors() -> None:
    model = made(gpt2(), segment=2)
    with torch.no_grad():
        first, second = encoded(model, IDS, MASK, 2)
    assert torch.equal(first[1], second[1]), "it has two tokens"
    assert not torch.allclose(first[0], second[0])


def test_without_a_gate_the_new_vectors_take_the_place_of_those_before() -> None:
    gated, replaced = made(gpt2(), segment=2), made(gpt2(), segment=2, update="replace")
    with torch.no_grad():
        before = torch.full((3, 2, 64), 7.0)
        found = {kind: model.encode(IDS[:, :2], MASK[:, :2], before) for kind, model in (("g", gated), ("r", replaced))}
    assert float(found["g"].mean()) > 3, "the gate begins with most of what was before"
    assert float(found["r"].mean().abs()) < 1


@pytest.mark.parametrize("training", ["full", "lora"])
def test_gradients_reach_all_that_is_trained_and_nothing_of_the_subject(training: str) -> None:
    subject = gpt2()
    subject.model.requires_grad_(True)
    options = OneWordAutoencoderOptions(segment=2, training=training, repulsion="info-nce")
    model = made(subject, segment=2, training=training)
    if training == "lora":  # at zero, B passes no gradient on to A
        with torch.no_grad():
            for name, parameter in model.copy.items():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    loss(model, IDS, MASK, "info-nce", [0], None, options, 0).backward()
    without = [
        name for name, each in model.named_parameters() if each.grad is None or not bool(each.grad.abs().sum() > 0)
    ]
    if training == "lora":  # no path leads through the blocks that are past the site
        without = [name for name in without if "/h/2/" not in name]
    assert without == []
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert model.trains_decoder == (training == "full")
    assert (model.decoder is subject) == (training == "lora")


def test_truncated_gradients_end_where_they_are_told_to() -> None:
    model = made(gpt2(), segment=1)
    reached = {}
    for truncate in (None, 1, 2):
        ids = IDS[:1]
        found = encoded(model, ids, MASK[:1], 1, truncate)
        reached[truncate] = [
            torch.autograd.grad(found[-1].sum(), each, retain_graph=True, allow_unused=True)[0] is not None
            for each in found[:-1]
        ]
    assert reached == {None: [True] * 3, 1: [False] * 3, 2: [False, False, True]}


def test_the_end_of_a_text_stands_behind_its_last_token() -> None:
    ids, mask = with_end(IDS, MASK, 1)
    assert ids.tolist() == [[3, 4, 5, 6, 1], [7, 8, 1, 0, 7], [9, 10, 11, 1, 9]]
    assert mask.sum(-1).tolist() == [5, 3, 4]
    assert with_end(IDS, MASK, None) == (IDS, MASK)


def test_padding_has_no_loss() -> None:
    logits = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    found = nll(logits, IDS, MASK)
    expected = -logits[:, :4].log_softmax(-1).gather(-1, IDS[..., None])[..., 0]
    torch.testing.assert_close(found, torch.where(MASK.bool(), expected, 0))


def test_alternated_losses_are_one_in_even_and_the_other_in_odd_steps() -> None:
    model = made(gpt2(), 1)

    def of(losses: str, step: int, kind: Any = "info-nce") -> float:
        options = OneWordAutoencoderOptions(losses=losses, repulsion_weight=0.5)
        with torch.no_grad():
            return float(loss(model, IDS, MASK, kind, [0], None, options, step))

    even, odd = of("alternated", 0), of("alternated", 1)
    assert even == pytest.approx(of("summed", 0, "none"))
    assert even + odd == pytest.approx(of("summed", 0), rel=1e-5)
    assert of("alternated", 0, "none") == of("alternated", 1, "none") == even


def test_the_words_are_the_sources(tiny_gpt2: Callable[..., Path]) -> None:
    subject = probekit.load(str(tiny_gpt2()))
    words = wording(subject, "source", 1)
    shown = ["…".join(subject.text(part) for part in parts) for parts in (words.encode, words.decode, words.again)]
    assert shown == [
        "Encode this text into 1-word length embedding: <text> … </text>\n<embedding>",
        "Decode this embedding into text: <embedding>…</embedding>\n",
        "Encode these embedding and text into 1-word length embedding: <embedding>…</embedding> <text> … "
        "</text>\n<embedding>",
    ]


def test_what_begins_a_text_stands_before_words_and_texts() -> None:
    words = wording(gpt2(), "none", 3)
    assert (words.encode, words.decode, words.longest) == (([], []), ([], []), 0)
