"""Where a model keeps its parts, where structure leaves it open: a forward decides, or a declaration; never a guess."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.modeling_outputs import CausalLMOutput

import probekit
from probekit.errors import ModelError
from probekit.models.anatomy import find_anatomy


class Block(nn.Module):
    def __init__(self, experts: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(experts))

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor]:
        return (states + self.linear(states) + sum(expert(states) for expert in self.experts),)


class OwnModel(nn.Module):
    """A causal language model (of one token's memory) with the lists of modules that a test asks for."""

    def __init__(
        self, lists: dict[str, int], runs: tuple[str, ...] = ("layers",), layers: int = 2, experts: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=layers, vocab_size=11, pad_token_id=None)
        self.runs = runs
        self.words = nn.Embedding(11, 8)
        for name, count in lists.items():
            self.add_module(name, nn.ModuleList(Block(experts) for _ in range(count)))
        self.before: nn.Module = nn.Identity()
        self.after: nn.Module = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.before(self.words(input_ids))
        for name in self.runs:
            for block in self.get_submodule(name):  # type: ignore[attr-defined]
                states = block(states)[0]
        return CausalLMOutput(logits=self.head(self.after(states)))


def test_a_model_of_ones_own_works_without_transformers_base_class() -> None:
    model = OwnModel({"layers": 2})
    subject = probekit.Subject(model)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(ids).logits
    assert torch.equal(subject.capture(ids, ["logits"])["logits"], expected)
    assert torch.equal(subject.layer_map("logits")(subject.embed(ids)), expected)
    assert torch.equal(subject.unembed(subject.capture(ids, ["block.-1"])["block.-1"]), expected)
    assert subject.has_logits


def test_a_body_without_a_head_has_no_logits() -> None:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    assert probekit.Subject(GPT2LMHeadModel(config)).has_logits
    assert not probekit.Subject(GPT2Model(config)).has_logits


# --- the blocks ------------------------------------------------------------------------------------------------------


def test_of_several_fitting_lists_the_one_that_runs_holds_the_blocks() -> None:
    for runs in ("layers", "others"):
        model = OwnModel({"layers": 2, "others": 2}, runs=(runs,)).train()
        model.head.eval()
        anatomy = find_anatomy(model)
        assert anatomy.blocks_path == runs
        assert model.layers.training  # type: ignore[union-attr]
        assert not model.head.training


def test_where_several_fitting_lists_run_it_is_an_error_that_names_them_and_says_what_to_do() -> None:
    model = OwnModel({"layers": 2, "others": 2}, runs=("layers", "others"))
    with pytest.raises(ModelError) as raised:
        find_anatomy(model)
    sentence = str(raised.value)
    assert sentence.startswith("Several lists of modules in OwnModel could be its 2 decoder blocks")
    assert "layers (2)" in sentence
    assert "others (2)" in sentence
    assert "--blocks PATH" in sentence
    assert not any(module._forward_hooks for module in model.modules())


def test_where_no_fitting_list_runs_it_is_an_error() -> None:
    with pytest.raises(ModelError, match="Several lists"):
        find_anatomy(OwnModel({"layers": 2, "others": 2, "third": 3}, runs=("third",)))


def test_where_no_list_fits_the_config_the_only_one_that_runs_holds_the_blocks() -> None:
    assert find_anatomy(OwnModel({"layers": 3}, runs=("layers",))).blocks_path == "layers"
    assert find_anatomy(OwnModel({"tower": 4, "layers": 3}, runs=("layers",))).blocks_path == "layers"


@pytest.mark.parametrize(
    ("lists", "there"),
    [({"layers": 3, "others": 4}, r"layers \(3\), others \(4\)"), ({"layers": 1}, r"layers \(1\)"), ({}, "none")],
)
def test_where_no_list_fits_the_config_it_is_an_error_that_says_what_there_is(
    lists: dict[str, int], there: str
) -> None:
    with pytest.raises(ModelError, match=rf"No list of modules in OwnModel could be its 2 .*lists are: {there}\. Say"):
        find_anatomy(OwnModel(lists, runs=tuple(lists)))


def test_lists_inside_a_block_are_not_the_blocks() -> None:
    anatomy = find_anatomy(OwnModel({"layers": 2}, experts=2))
    assert anatomy.blocks_path == "layers"


def test_declared_blocks_decide() -> None:
    model = OwnModel({"layers": 2, "others": 2}, runs=("layers", "others"))
    subject = probekit.Subject(model, anatomy={"blocks": "others"})
    assert subject.anatomy.blocks == list(model.others)  # type: ignore[arg-type]
    assert "block.1" in subject.sites()


def test_a_wrong_declared_path_names_the_nearest() -> None:
    model = OwnModel({"layers": 2})
    with pytest.raises(ModelError, match=r"no module 'layer'\. Did you mean 'layers'\?"):
        find_anatomy(model, {"blocks": "layer"})
    with pytest.raises(ModelError, match=r"no module 'word'\. Did you mean 'words'\?"):
        find_anatomy(model, {"embedding": "word"})


def test_a_declared_path_to_no_list_is_an_error() -> None:
    with pytest.raises(ModelError, match="'head' is a Linear, not a list of decoder blocks"):
        find_anatomy(OwnModel({"layers": 2}), {"blocks": "head"})


def test_an_unknown_part_is_an_error_that_lists_the_parts() -> None:
    with pytest.raises(ModelError, match="'layers'; the keys are blocks, embedding, norm, unembedding and sequence"):
        find_anatomy(OwnModel({"layers": 2}), {"layers": "layers"})


def test_blocks_can_be_declared_in_the_model_spec(tiny_gpt2: Callable[..., Path]) -> None:
    folder = tiny_gpt2(tokenizer=False)
    assert probekit.load(str(folder), blocks="transformer.h").anatomy.blocks_path == "transformer.h"
    with pytest.raises(ModelError, match=r"no module 'transformer\.g'\. Did you mean 'transformer"):
        probekit.load(str(folder), blocks="transformer.g")


# --- models of one length --------------------------------------------------------------------------------------------


class FixedLength(OwnModel):
    """Takes three tokens, no more and no fewer, and mixes them."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        assert input_ids.shape[1] == 3
        states = self.words(input_ids)
        for name in self.runs:
            for block in self.get_submodule(name):  # type: ignore[attr-defined]
                states = block(states)[0] + states.roll(1, 1)
        return CausalLMOutput(logits=self.head(self.after(states)))


def test_a_model_of_one_length_is_only_run_at_that_length() -> None:
    model = FixedLength({"layers": 2, "others": 2})
    with pytest.raises(ModelError, match="does not run on token ids alone"):
        probekit.Subject(model)
    subject = probekit.Subject(model, anatomy={"sequence": 3})
    assert (subject.anatomy.sequence, subject.anatomy.blocks_path) == (3, "layers")
    assert subject.anatomy.norm is model.after
    ids = subject.check_ids([1, 2, 3])
    assert torch.equal(subject.layer_map("block.1")(subject.embed(ids)), subject.capture(ids, ["block.1"])["block.1"])


@pytest.mark.parametrize("ids", [[1, 2], [1, 2, 3, 4]])
def test_a_prompt_of_another_length_is_refused_in_one_sentence(ids: list[int]) -> None:
    subject = probekit.Subject(FixedLength({"layers": 2}), anatomy={"sequence": 3})
    with pytest.raises(probekit.UsageError) as raised:
        subject.check_ids(ids, "'some words'")
    assert str(raised.value) == (
        f"This model reads exactly 3 tokens; the prompt 'some words' has {len(ids)}. "
        f"Give a prompt of 3, or a model made for {len(ids)}."
    )


def test_a_length_beyond_the_vocabulary_is_checked_with_tokens_that_there_are() -> None:
    class TwoWords(FixedLength):
        def __init__(self) -> None:
            super().__init__({"layers": 2})
            self.words = nn.Embedding(2, 8)

    subject = probekit.Subject(TwoWords(), anatomy={"sequence": 3})
    assert not subject.conditioned_on_ids


def test_any_length_is_what_is_not_declared() -> None:
    model = OwnModel({"layers": 2})
    assert find_anatomy(model).sequence is None
    assert find_anatomy(model, {"sequence": None}).sequence is None
    assert probekit.Subject(model).check_ids([1] * 7).shape == (1, 7)


@pytest.mark.parametrize("sequence", [0, -3, True, "3", 3.0])
def test_a_declared_length_that_can_be_none_is_an_error(sequence: Any) -> None:
    with pytest.raises(ModelError, match=rf"sequence {sequence!r}; expected a number of tokens from 1 on"):
        find_anatomy(OwnModel({"layers": 2}), {"sequence": sequence})


def test_a_declared_part_that_is_no_path_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"has blocks 3; expected the path of a module, or None"):
        find_anatomy(OwnModel({"layers": 2}), {"blocks": 3})


# --- the norm --------------------------------------------------------------------------------------------------------


def test_a_norm_of_the_embeddings_is_not_the_final_norm() -> None:
    model = OwnModel({"layers": 2})
    model.before = nn.LayerNorm(8)
    assert find_anatomy(model).norm is model.after
    model.after = nn.Identity()
    assert find_anatomy(model).norm is None


def test_a_norm_without_parameters_is_found() -> None:
    model = OwnModel({"layers": 2})
    model.after = nn.LayerNorm(8, elementwise_affine=False)
    assert find_anatomy(model).norm is model.after


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.Identity()], ids=["dropout", "identity"])
def test_what_returns_what_it_gets_is_no_norm(module: nn.Module) -> None:
    model = OwnModel({"layers": 2}).train()
    model.after = module
    assert find_anatomy(model).norm is None
    assert "norm" not in probekit.Subject(model).sites()
    with pytest.raises(probekit.UsageError, match="There is no site 'norm'"):
        probekit.Subject(model).capture(torch.tensor([[1, 2]]), ["norm"])


def test_parts_can_be_declared_or_declared_away() -> None:
    model = OwnModel({"layers": 2})
    anatomy = find_anatomy(model, {"norm": "head", "unembedding": None})
    assert anatomy.norm is model.head
    assert anatomy.unembedding is None
    assert anatomy.unembedding_path is None
    assert find_anatomy(model, {"norm": None}).norm is None


# --- the embedding ---------------------------------------------------------------------------------------------------


class Unsaid(OwnModel):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


class Elsewhere(OwnModel):
    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding(11, 8)


@pytest.mark.parametrize("kind", [Unsaid, Elsewhere])
def test_without_a_token_embedding_of_its_own_it_is_an_error_until_one_is_declared(kind: type[OwnModel]) -> None:
    model = kind({"layers": 2})
    with pytest.raises(ModelError, match=rf"{kind.__name__} does not say which module embeds its tokens; declare"):
        probekit.Subject(model)
    subject = probekit.Subject(model, anatomy={"embedding": "words"})
    assert subject.anatomy.embedding is model.words


def test_an_embedding_that_the_model_does_not_run_is_refused() -> None:
    model = OwnModel({"layers": 2})
    model.unused = nn.Embedding(11, 8)
    with pytest.raises(ModelError):
        probekit.Subject(model, anatomy={"embedding": "unused"})


class AddsItsOwn(OwnModel):
    """Adds to its embeddings what it reads from the token ids by another way."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids) + input_ids[..., None] / 10
        for block in self.layers:  # type: ignore[union-attr]
            states = block(states)[0]
        return CausalLMOutput(logits=self.head(states))


def test_blocks_that_read_the_ids_again_need_them() -> None:
    subject = probekit.Subject(AddsItsOwn({"layers": 2}))
    ids = torch.tensor([[1, 2, 3]])
    assert subject.conditioned_on_ids
    with pytest.raises(probekit.UsageError, match="read the token ids again, so its layer map needs `input_ids`"):
        subject.layer_map("block.0")
    activation = subject.layer_map("block.1", input_ids=ids)(subject.embed(ids))
    assert torch.equal(activation, subject.capture(ids, ["block.1"])["block.1"])


class AddsItLater(OwnModel):
    """Adds what it reads from the token ids only behind its second block."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids)
        for index, block in enumerate(self.layers):  # type: ignore[arg-type, union-attr]
            states = block(states)[0]
            if index == 1:
                states = states + input_ids[..., None] / 10
        return CausalLMOutput(logits=self.head(self.after(states)))


def test_only_sites_behind_what_reads_the_ids_again_need_them() -> None:
    subject = probekit.Subject(AddsItLater({"layers": 4}, layers=4))
    ids = torch.tensor([[1, 2, 3]])
    assert not subject.conditioned_on_ids
    assert [subject.reads_ids(f"block.{index}") for index in range(4)] == [False, False, True, True]
    assert subject.reads_ids("logits")
    assert subject.conditioned_on_ids
    subject.layer_map("block.1")
    with pytest.raises(probekit.UsageError, match="its layer map needs `input_ids`"):
        subject.layer_map("block.-1")
    activation = subject.layer_map("block.-1", input_ids=ids)(subject.embed(ids))
    assert torch.equal(activation, subject.capture(ids, ["block.3"])["block.3"])


def test_a_deeper_block_that_does_not_need_them_speaks_for_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = probekit.Subject(OwnModel({"layers": 4}, layers=4))
    assert not subject.reads_ids("block.3")
    monkeypatch.setattr(subject.model, "forward", None)  # a forward would fail
    assert not subject.reads_ids("block.2")


# --- what is no causal language model --------------------------------------------------------------------------------


def test_a_model_without_a_config_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="Linear has no `config`; probekit reads models built by transformers"):
        probekit.Subject(nn.Linear(2, 2))


def test_a_model_that_needs_more_than_token_ids_is_a_sentence() -> None:
    class Demanding(OwnModel):
        def forward(self, input_ids: torch.Tensor, images: Any = None) -> CausalLMOutput:
            raise ValueError("Give me images.\nPlease.")

    model = Demanding({"layers": 2}).train()
    with pytest.raises(
        ModelError, match=r"Demanding does not run on token ids alone \(ValueError: Give me images\.\); probekit"
    ):
        probekit.Subject(model)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
