"""Analyses on models that are not like the others: more tokens embedded than predicted, codebooks, rough gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import probekit
from probekit_plugins.frozen_head import FrozenHeadOptions
from probekit_plugins.frozen_head.arm import Arm
from probekit_plugins.frozen_head.corpus import Corpus
from probekit_plugins.repetition import RepetitionOptions
from probekit_plugins.repetition.contrastive import ending_tokens
from probekit_plugins.repetition.finetuning import FineTuning
from probekit_plugins.texts import pieces_of_file
from tests.forward.tiny import VOCABULARY, named

LONG, SHORT = [25, 37, 23, 64, 29], [70, 28, 41]
# Small enough for a second; the rest are the defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "frozen-head": {"steps": 2, "batch": 2, "length": 8, "initialisations": 1, "pieces": 10},
    "clamped-walk": {"steps": 2, "walkers": 2, "noise_draws": 1, "inner": 1, "sites": "blocks"},
    "gradient-inverter": {"steps": 20, "restarts": 2, "sites": "block.0,block.-1", "record_every": 10},
    "jacobian-spectrum": {},
    "null-space-walk": {"steps": 1, "walkers": 2, "noise_draws": 1, "iterations": 4, "sites": "blocks"},
    "orthogonal-walk": {"steps": 2, "walkers": 2, "noise_draws": 1, "sites": "blocks"},
    "pseudo-inverse": {"sites": "blocks"},
    "repetition": {"new_tokens": 2, "samples": 2, "random_draws": 2},
}
# Models whose heads score the first 96 of their tokens: the last ones are for images, for silence, for a prompt.
MORE_TOKENS = ("mllama", "moshi", "cpmant")


def odd(name: str) -> probekit.Subject:
    return probekit.Subject(named(name))


def run(subject: probekit.Subject, name: str, *prompts: list[int], **options: Any) -> probekit.Result:
    """An analysis of prompts, with its page drawn."""
    kind = probekit.Plugins().analysis(name)
    analysis = kind(kind.options_model(**{**OPTIONS[name], **options}))
    ids = [subject.check_ids(prompt) for prompt in prompts]
    result: probekit.Result = analysis.run(subject, [probekit.Prompt("", each, subject.tokens(each)) for each in ids])
    analysis.report(result, probekit.Page(name))
    return result


def text_of(subject: probekit.Subject, token: int, folder: Path) -> str:
    """A file of eight letters, and a tokenizer that makes this token of every letter."""

    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [token] * len(text)}

    subject.tokenizer = tokenizer
    (folder / "text.txt").write_text("abcdefgh", encoding="utf-8")
    return str(folder / "text.txt")


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("space", ["embedding", "vocabulary-linear"])
def test_padding_does_not_spoil_the_gradient_of_a_prompt(optimizer: str, space: str) -> None:
    """Blocks of gemma3n have no finite gradient where an embedding is zero, as noise at padding is."""
    result = run(odd("gemma3n_text"), "gradient-inverter", LONG, SHORT, optimizer=optimizer, input_space=space)
    for number in (0, 1):
        losses = result.tensors[f"{number}/block.0/losses"]
        assert bool(torch.isfinite(losses).all())
        assert bool((losses[-1] < 0.9 * losses[0]).all())


def test_a_shorter_prompt_is_inverted_as_it_is_alone() -> None:
    subject = odd("gemma3n_text")
    first, second = (run(subject, "gradient-inverter", SHORT, *others, sites="block.0") for others in ([], [LONG]))
    assert torch.allclose(first.tensors["0/block.0/losses"], second.tensors["0/block.0/losses"], rtol=1e-2)


@pytest.mark.parametrize("name", MORE_TOKENS)
def test_a_head_of_fewer_tokens_decodes_and_has_no_margins(name: str) -> None:
    subject = odd(name)
    result = run(subject, "pseudo-inverse", LONG)
    assert any(f"scores the first {VOCABULARY}" in note for note in result.notes)
    assert "unembedding/round_trip_rate" not in result.metrics
    assert len(result.tensors["margins/nearest"]) == subject.vocabulary > VOCABULARY
    with pytest.raises(probekit.UsageError, match=f"vocabulary has {VOCABULARY} tokens"):
        run(subject, "pseudo-inverse", LONG, top_k=VOCABULARY + 1, decoders=["unembedding"])


def test_the_lens_still_looks_through_a_head_of_fewer_tokens() -> None:
    subject = odd("mllama")
    result = run(subject, "pseudo-inverse", LONG, sites="block.-1", decoders=["unembedding"], top_k=1)
    own = subject.capture(subject.check_ids(LONG), ["logits"])["logits"][0].argmax(-1)
    assert [sequence.ids for sequence in result.sequences["lens"]] == [own.tolist()]


@pytest.mark.parametrize("name", MORE_TOKENS)
def test_only_predicted_tokens_are_drawn_for_comparison(name: str) -> None:
    result = run(odd(name), "repetition", LONG, SHORT, strategies=["greedy", "contrastive"], random_draws=8)
    assert result.metrics["prompts/nll"] is not None


def test_a_prompt_with_a_token_that_is_never_predicted_is_refused(tmp_path: Path) -> None:
    subject = odd("mllama")
    with pytest.raises(probekit.UsageError, match=f"The token {VOCABULARY + 3} has no logit"):
        run(subject, "repetition", [25, VOCABULARY + 3, 28])
    text = text_of(subject, VOCABULARY + 3, tmp_path)
    with pytest.raises(probekit.UsageError, match=f"a token, {VOCABULARY + 3}, that this model embeds but never"):
        pieces_of_file(subject, text, 4, "length")


def test_a_token_that_ends_texts_need_not_be_predicted() -> None:
    subject = odd("mllama")
    subject.model.generation_config.eos_token_id = [2, VOCABULARY + 3]  # type: ignore[union-attr]
    assert ending_tokens(subject) == [2]


def test_a_model_of_codebooks_has_no_head_to_freeze_and_writes_no_text() -> None:
    subject = odd("musicgen")
    with pytest.raises(probekit.UsageError, match="has several heads, one for each of its codebooks"):
        run(subject, "frozen-head", LONG)
    assert any("does not generate text" in note for note in run(subject, "repetition", LONG).notes)
    with pytest.raises(probekit.UsageError, match="does not generate text; give one that does, or leave generation"):
        run(subject, "repetition", LONG, strategies=["greedy"])


def test_a_model_without_gradients_in_eval_mode_is_not_trained(tmp_path: Path) -> None:
    """Reformer's backward pass is its own, and works in training mode only: with dropout."""
    subject = odd("reformer")
    pieces = torch.tensor([LONG[:4]] * 10)
    arm = Arm(subject, Corpus(pieces, pieces), "frozen", 0, FrozenHeadOptions(steps=1), probekit.Context())
    with pytest.raises(probekit.AnalysisError, match="ReformerModelWithLMHead cannot be trained without dropout"):
        arm.train()
    prompt = probekit.Prompt("", subject.check_ids(LONG), subject.tokens(LONG))
    options = RepetitionOptions(text=text_of(subject, 25, tmp_path), text_length=4, unlikelihood_steps=1)
    tuning = FineTuning(subject, prompt, options, probekit.Context())
    with pytest.raises(probekit.AnalysisError, match="ReformerModelWithLMHead cannot be trained without dropout"):
        tuning.tuned(1.0, "unlikelihood")


@pytest.mark.parametrize(
    "name", ["clamped-walk", "gradient-inverter", "jacobian-spectrum", "null-space-walk", "orthogonal-walk"]
)
def test_blocks_at_other_positions_than_the_prompts(name: str) -> None:
    """The middle blocks of blt work on patches of tokens: six for a prompt of five."""
    result = run(odd("blt"), name, LONG, sites="block.0:4")
    known = [value for value in result.metrics.values() if isinstance(value, float)]
    assert known
    assert bool(torch.isfinite(torch.tensor(known)).all())


def test_positions_are_not_chosen_where_there_are_others() -> None:
    with pytest.raises(probekit.UsageError, match=r"block\.1 has 6 positions, a prompt 5"):
        run(odd("blt"), "gradient-inverter", LONG, sites="block.1", target_positions=[0])


def test_the_lens_leaves_out_other_positions() -> None:
    result = run(odd("blt"), "pseudo-inverse", LONG)
    assert any("other positions than the prompt: block.1, block.2, block.3." in note for note in result.notes)
    assert {row["site"] for row in result.tables["lens"]} == {"block.0", "block.4", "block.5", "block.6"}


def test_the_spectrum_at_other_positions_is_that_of_the_whole_map() -> None:
    subject = odd("blt")
    dense = run(subject, "jacobian-spectrum", LONG, sites="block.1")
    ids = subject.check_ids(LONG)
    layer_map = subject.layer_map("block.1", input_ids=ids if subject.conditioned_on_ids else None)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has wrong gradients for the queries of empty patches
        whole = torch.autograd.functional.jacobian(layer_map, subject.embed(ids)).view(-1, ids.numel() * subject.width)
    expected = torch.linalg.svdvals(whole.double())
    assert torch.allclose(dense.tensors["0/block.1/values"], expected, rtol=1e-3, atol=1e-4 * float(expected[0]))
