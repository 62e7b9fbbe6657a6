"""Prompts of unequal length in one batch: each has what it has alone, or the model is refused in a sentence."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import probekit
from probekit.errors import UsageError
from tests.forward.tiny import make, named, tiny

# Prompts of four lengths, none of them with a special token.
PROMPTS = [[25, 37, 23, 64, 29], [70, 28], [41], [22, 22, 90]]
PADDING = 0  # what the tiny configs call padding, those that name one


@cache
def made(name: str) -> nn.Module:
    return named(name)


def subject_of(name: str) -> probekit.Subject:
    """A subject of its own for each test: what it has tried, it remembers."""
    return probekit.Subject(copy.deepcopy(made(name)))


def padded(side: str, filling: int = PADDING) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts as one batch padded on that side, with that token, and their mask."""
    longest = max(map(len, PROMPTS))
    ids, mask = [], []
    for prompt in PROMPTS:
        missing = longest - len(prompt)
        ids.append(prompt + [filling] * missing if side == "right" else [filling] * missing + prompt)
        mask.append([1] * len(prompt) + [0] * missing if side == "right" else [0] * missing + [1] * len(prompt))
    return torch.tensor(ids), torch.tensor(mask)


def assert_each_has_what_it_has_alone(
    subject: probekit.Subject, activation: torch.Tensor, side: str, site: str
) -> None:
    for row, prompt in zip(activation, PROMPTS, strict=True):
        alone = subject.capture(torch.tensor([prompt]), [site])[site][0]
        own = row[: len(prompt)] if side == "right" else row[-len(prompt) :]
        torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-5)


# What works, and whether a model has to be told its positions, which are then those from where its padding ends.
WORKING = {
    ("right", "llama"): False,
    ("right", "gpt2"): False,
    ("right", "roberta"): False,
    ("right", "mamba"): False,
    ("right", "bart"): False,
    ("right", "rwkv"): False,
    ("right", "xlnet"): False,
    ("right", "deepseek_v4"): False,
    ("right", "reformer"): False,
    ("left", "llama"): False,
    ("left", "opt"): False,
    ("left", "mamba"): False,
    ("left", "xlnet"): False,
    ("left", "gpt2"): True,
    ("left", "bert"): True,
    ("left", "roberta"): False,  # it counts from where padding tokens stand
}


@pytest.mark.parametrize(("side", "name"), WORKING)
@pytest.mark.parametrize("site", ["block.0", "block.-1"])
def test_each_prompt_of_a_padded_batch_has_what_it_has_alone(side: str, name: str, site: str) -> None:
    subject = subject_of(name)
    ids, mask = padded(side)
    captured = subject.capture(ids, [site], attention_mask=mask)[site]
    assert_each_has_what_it_has_alone(subject, captured, side, site)
    layer_map = subject.layer_map(site, attention_mask=mask)
    for _ in range(4):  # later calls may be computed in another way than the first
        embeddings = subject.embed(ids).requires_grad_()
        mapped = layer_map(embeddings)
        own = mask.bool()
        torch.testing.assert_close(mapped[own], captured[own], rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(mapped[own].square().sum(), embeddings)
        assert not gradient[~own].any()  # nothing of a prompt depends on its padding
        assert gradient[own].abs().amax(-1).min() > 0


@pytest.mark.parametrize(("side", "name"), [case for case, told in WORKING.items() if told])
def test_without_positions_those_models_would_give_something_else(side: str, name: str) -> None:
    """The reference above is no accident: a plain forward with the mask alone is wrong for them."""
    subject = subject_of(name)
    ids, mask = padded(side)
    with torch.no_grad():
        plain = subject.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    captured = subject.capture(ids, ["logits"], attention_mask=mask)["logits"]
    assert_each_has_what_it_has_alone(subject, captured, side, "logits")
    assert not torch.allclose(plain[1, -2:], captured[1, -2:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bart", "reformer", "rwkv"])
def test_padding_in_front_that_a_model_cannot_take_is_refused_in_a_sentence(name: str) -> None:
    subject = subject_of(name)
    ids, mask = padded("left")
    sentence = (
        rf"^With padding on the left, {type(subject.model).__name__} does not give a prompt the activation at "
        r"'block\.(2|-1)' that it has alone; pad on the right, or give prompts of one length at a time\.$"
    )
    for _ in range(2):
        with pytest.raises(UsageError, match=sentence):
            subject.capture(ids, ["block.-1"], attention_mask=mask)
        for beside in (ids, None):
            with pytest.raises(UsageError, match=sentence):
                subject.layer_map("block.-1", beside, attention_mask=mask)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


def test_a_model_that_counts_from_padding_tokens_has_them_whatever_stands_in_their_places() -> None:
    subject = subject_of("roberta")
    ids, mask = padded("left", filling=55)
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, "left", "block.-1")


def test_so_does_its_layer_map() -> None:
    subject = subject_of("roberta")
    ids, mask = padded("left", filling=55)
    with torch.no_grad():
        mapped = subject.layer_map("block.-1", ids, attention_mask=mask)(subject.embed(ids))
    assert_each_has_what_it_has_alone(subject, mapped, "left", "block.-1")


# A row that is padded on the left and one that is padded on the right, and a row with a hole beside one on the left.
@pytest.mark.parametrize("rows", [[[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], [[1, 0, 1, 0, 1], [0, 1, 1, 1, 1]]])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_each_row_of_a_mixed_batch_has_what_it_has_alone(name: str, rows: list[list[int]]) -> None:
    subject = subject_of(name)
    ids, mask = torch.tensor([[30, 40, 50, 60, 70], [35, 45, 55, 65, 75]]), torch.tensor(rows)
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    alone = subject.capture(ids[1:, 1:], ["block.-1"])["block.-1"]
    torch.testing.assert_close(captured[1:, 1:], alone)


def test_one_mask_serves_several_prompts() -> None:
    subject = subject_of("gpt2")
    ids, mask = torch.tensor([[30, 40, 50], [35, 45, 55]]), torch.tensor([[0, 1, 1]])
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    torch.testing.assert_close(captured[:, 1:], subject.capture(ids[:, 1:], ["block.-1"])["block.-1"])


def test_an_open_edit_neither_sees_nor_spoils_what_is_tried() -> None:
    subject = subject_of("gpt2")
    ids, mask = padded("left")
    shapes = []
    with subject.edit("block.0", lambda activation: (shapes.append(activation.shape), activation * 0)[1]):
        subject.capture(ids, ["block.-1"], attention_mask=mask)
    assert shapes == [(*ids.shape, 32)]
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, "left", "block.-1")


def test_a_layer_map_asked_for_first_does_not_hide_that_a_model_has_to_be_told_its_positions() -> None:
    """hunyuan takes no positions from its mask; tokens that are all alike would not show it."""
    subject = subject_of("hunyuan_v1_dense")
    ids, mask = padded("left")
    subject.layer_map("block.-1", attention_mask=mask)
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, "left", "block.-1")


@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_that_read_the_ids_again_have_them_beside_a_padded_batch(side: str) -> None:
    subject = subject_of("gemma3n_text")
    ids, mask = padded(side)
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, side, "block.-1")
    with torch.no_grad():
        mapped = subject.layer_map("block.-1", ids, attention_mask=mask)(subject.embed(ids))
    torch.testing.assert_close(mapped[mask.bool()], captured[mask.bool()])


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_in_the_padding_does_not_matter(side: str) -> None:
    subject = subject_of("gpt2")
    ids, mask = padded(side)
    first = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    second = subject.capture(padded(side, 55)[0], ["block.-1"], attention_mask=mask)["block.-1"]
    assert torch.equal(first[mask.bool()], second[mask.bool()])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32])
def test_a_mask_of_another_type_is_the_same_mask(name: str, kind: torch.dtype) -> None:
    subject = subject_of(name)
    ids, mask = padded("left")
    expected = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    found = subject.capture(ids, ["block.-1"], attention_mask=mask.to(kind))["block.-1"]
    assert torch.equal(found[mask.bool()], expected[mask.bool()])


# --- models that do not look at their mask ----------------------------------------------------------------------------


class Mixing(nn.Module):
    """A causal language model that mixes its positions, and looks at a mask only as it is told."""

    def __init__(self, causal: bool = True, minds: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=2, vocab_size=96, pad_token_id=None)
        self.causal = causal
        self.minds = minds
        self.words = nn.Embedding(96, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 96, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> CausalLMOutput:
        states = self.words(input_ids)
        if self.minds and attention_mask is not None:
            states = states * attention_mask[..., None]
        states = states.cumsum(1) if self.causal else states + states.sum(1, keepdim=True)
        for layer in self.layers:
            states = torch.tanh(layer(states))
        return CausalLMOutput(logits=self.head(states))


def test_a_causal_model_that_ignores_its_mask_is_refused_with_padding_in_front_only() -> None:
    subject = probekit.Subject(Mixing())
    ids, mask = padded("right")
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, "right", "block.-1")
    ids, mask = padded("left")
    sentence = (
        r"^With padding on the left, Mixing does not give a prompt the activation at 'block\.1' that it has alone; "
        r"pad on the right, or give prompts of one length at a time\.$"
    )
    with pytest.raises(UsageError, match=sentence):
        subject.capture(ids, ["block.-1"], attention_mask=mask)
    with pytest.raises(UsageError, match="With padding on the left"):
        subject.layer_map("logits", attention_mask=mask)
    # It is the mask that makes the difference: the model that minds it gives each prompt its own.
    minding = probekit.Subject(Mixing(minds=True))
    captured = minding.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(minding, captured, "left", "block.-1")


def test_a_model_that_looks_ahead_and_ignores_its_mask_is_refused_with_padding_behind_too() -> None:
    subject = probekit.Subject(Mixing(causal=False))
    ids, mask = padded("right")
    sentence = r"at 'logits' that it has alone; give prompts of one length at a time\.$"
    with pytest.raises(UsageError, match=sentence):
        subject.capture(ids, ["logits"], attention_mask=mask)
    # A batch of prompts of one length is none of this.
    assert subject.capture(ids, ["logits"], attention_mask=torch.ones_like(mask))["logits"].shape == (4, 5, 96)


def test_sites_before_the_mixing_are_not_refused() -> None:
    subject = probekit.Subject(Mixing(causal=False))
    ids, mask = padded("left")
    captured = subject.capture(ids, ["embedding"], attention_mask=mask)["embedding"]
    assert torch.equal(captured, subject.embed(ids))


class Maskless(Mixing):
    """Takes no mask at all."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:  # type: ignore[override]
        return super().forward(input_ids)


def test_a_model_that_takes_no_mask_is_tried_without() -> None:
    subject = probekit.Subject(Maskless())
    ids, mask = padded("right")
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, "right", "block.-1")
    with pytest.raises(UsageError, match="With padding on the left, Maskless does not give"):
        subject.capture(ids, ["block.-1"], attention_mask=padded("left")[1])


# --- masks ------------------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_hidden_altogether_is_an_error_that_says_which() -> None:
    subject = subject_of("llama")
    ids, mask = padded("right")
    mask[2] = 0
    sentence = r"^The attention mask hides all of prompt 2; leave that prompt out\.$"
    with pytest.raises(UsageError, match=sentence):
        subject.capture(ids, ["block.0"], attention_mask=mask)
    with pytest.raises(UsageError, match=sentence):
        subject.layer_map("block.0", attention_mask=mask)


def test_a_mask_with_holes_is_given_to_the_model_as_it_is() -> None:
    subject = subject_of("llama")
    ids = torch.tensor([PROMPTS[0], [70, 28, 22, 22, 90]])
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 0, 1]])
    with torch.no_grad():
        expected = subject.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        mapped = subject.layer_map("logits", attention_mask=mask)(subject.embed(ids))
        unmasked = subject.model(input_ids=ids, use_cache=False).logits
    captured = subject.capture(ids, ["logits"], attention_mask=mask)["logits"]
    assert torch.equal(captured, expected)
    assert torch.equal(mapped, expected)
    assert not torch.allclose(expected, unmasked)


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (3, 5), (2, 5), (5, 5)])
def test_a_mask_that_does_not_fit_the_token_ids_is_an_error_with_both_shapes(shape: tuple[int, int]) -> None:
    subject = subject_of("llama")
    ids = padded("right")[0]
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, -1] = 0
    with pytest.raises(UsageError) as raised:
        subject.capture(ids, ["block.0"], attention_mask=mask)
    assert str(raised.value) == (
        f"The attention mask has the shape {shape}, the token ids (4, 5); give one number for each token."
    )
    with pytest.raises(UsageError, match="The attention mask has the shape"):
        subject.layer_map("block.0", ids, attention_mask=mask)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("mask", [[[1, 1, 1, 0, 0]], [[0, 1, 1, 1, 1]]])
def test_one_mask_serves_all_embeddings_of_a_layer_map(name: str, mask: list[list[int]]) -> None:
    subject = subject_of(name)
    one = torch.tensor(mask)
    ids = torch.tensor([PROMPTS[0], [70, 28, 22, 22, 90], [41, 42, 43, 44, 45]])
    expected = subject.capture(ids, ["block.-1"], attention_mask=one.expand(3, -1))["block.-1"]
    layer_map = subject.layer_map("block.-1", attention_mask=one)
    for _ in range(4):
        mapped = layer_map(subject.embed(ids).requires_grad_())
        torch.testing.assert_close(mapped, expected)
    for row, prompt in zip(mapped, ids, strict=True):
        alone = subject.capture(prompt[None, one[0].bool()], ["block.-1"])["block.-1"][0]
        torch.testing.assert_close(row[one[0].bool()], alone, rtol=1e-4, atol=1e-5)


def test_trying_leaves_no_hook_no_mode_and_no_flag_behind() -> None:
    model = copy.deepcopy(made("gpt2")).train().requires_grad_(True)
    model.lm_head.eval()
    subject = probekit.Subject(model)
    ids, mask = padded("left")
    subject.capture(ids, ["block.-1"], attention_mask=mask)
    assert model.training
    assert not model.lm_head.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "roberta"])
def test_a_batch_is_padded_on_the_right_and_its_mask_says_where(name: str) -> None:
    subject = subject_of(name)
    ids, mask = subject.batch([PROMPTS[0], torch.tensor([PROMPTS[1]]), torch.tensor(PROMPTS[2]), tuple(PROMPTS[3])])
    expected_ids, expected_mask = padded("right")
    assert torch.equal(mask, expected_mask)
    assert mask.dtype == ids.dtype == torch.int64
    assert torch.equal(ids[mask.bool()], expected_ids[mask.bool()])
    if subject.model.config.pad_token_id is not None:
        assert torch.equal(ids, expected_ids)
    captured = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
    assert_each_has_what_it_has_alone(subject, captured, "right", "block.-1")


def test_a_batch_of_one_or_of_prompts_as_long_has_no_padding() -> None:
    subject = subject_of("llama")
    ids, mask = subject.batch([[25, 37]])
    assert (ids.tolist(), mask.tolist()) == ([[25, 37]], [[1, 1]])
    ids, mask = subject.batch([[25, 37], [64, 29]])
    assert (ids.tolist(), mask.tolist()) == ([[25, 37], [64, 29]], [[1, 1], [1, 1]])


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], r"^There are no prompts to make a batch of; give at least one\.$"),
        ([[25], []], r"has no tokens; give a prompt with at least one\.$"),
        ([[25], [96]], r"^The token id 96 is outside the vocabulary of this model; ids go from 0 to 95\.$"),
        ([[25], [-1]], r"^The token id -1 is outside the vocabulary of this model"),
        ([[25] * 65, [25]], r"has 65 tokens, but the model's context is 64; shorten it\.$"),
    ],
)
def test_prompts_that_make_no_batch_are_an_error(prompts: list[list[int]], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        subject_of("llama").batch(prompts)


# --- the padding token in a prompt, and the context ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roberta", "xlm"])
def test_a_padding_token_in_a_prompt_is_refused_where_the_model_reads_where_padding_stands(name: str) -> None:
    subject = subject_of(name)
    for refused in (subject.check_ids, lambda ids: subject.batch([[25], ids])):
        with pytest.raises(UsageError) as raised:
            refused([25, PADDING, 37])
        sentence = str(raised.value)
        assert f"has the padding token {PADDING}, and this model takes positions or masks from where" in sentence
        assert sentence.endswith("leave it out of the prompt.")
    assert subject.check_ids([25, 37]).tolist() == [[25, 37]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_padding_token_in_a_prompt_is_a_token_like_another_elsewhere(name: str) -> None:
    subject = subject_of(name)
    ids = subject.check_ids([25, PADDING, 37])
    assert ids.tolist() == [[25, PADDING, 37]]
    with torch.no_grad():
        mapped = subject.layer_map("block.-1")(subject.embed(ids))
    assert torch.equal(mapped, subject.capture(ids, ["block.-1"])["block.-1"])


@pytest.mark.parametrize(
    ("name", "context"), [("roberta", 63), ("roberta-prelayernorm", 63), ("bert", 64), ("gpt2", 64)]
)
def test_a_prompt_as_long_as_the_context_runs_and_one_more_is_refused(name: str, context: int) -> None:
    subject = subject_of(name)
    assert subject.context == context
    ids = subject.check_ids([25] * context)
    assert bool(torch.isfinite(subject.capture(ids, ["logits"])["logits"]).all())
    with pytest.raises(
        UsageError, match=rf"has {context + 1} tokens, but the model's context is {context}; shorten it"
    ):
        subject.check_ids([25] * (context + 1))
    with pytest.raises((IndexError, RuntimeError)):  # and rightly so
        subject.capture(torch.full((1, context + 1), 25), ["logits"])


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_positions_are_counted_from_behind_the_padding_tokens_own(padding: int) -> None:
    config = tiny(CONFIG_MAPPING["roberta"])
    config.pad_token_id = padding
    subject = probekit.Subject(make(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING["roberta"]], config))
    assert subject.context == 63 - padding
    subject.capture(subject.check_ids([25] * (63 - padding)), ["logits"])
    with pytest.raises(UsageError, match=rf"but the model's context is {63 - padding}; shorten it"):
        subject.check_ids([25] * (64 - padding))
    with pytest.raises(UsageError, match=rf"has the padding token {padding}, and this model takes"):
        subject.check_ids([25, padding])
