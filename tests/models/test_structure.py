"""Where the blocks and the final norm are of a model made of several stacks, or without a module for each block."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

import probekit
from probekit.errors import ModelError
from probekit.models.anatomy import find_anatomy
from tests.forward.tiny import named

IDS = torch.tensor([[25, 37, 23, 64, 29], [70, 28, 28, 41, 22]])


@cache
def model_of(name: str) -> nn.Module:
    return named(name)


def order_of_first_runs(model: nn.Module, paths: list[str]) -> list[str]:
    """Which of these modules run in a plain forward, in the order in which each runs first."""
    ran: list[str] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path)) for path in paths
    ]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(ran))


# --- stacks, one after another ----------------------------------------------------------------------------------------

STACKS = {
    "hrm_text": ["model.L_module.layers", "model.H_module.layers"],
    "blt": ["model.local_encoder.layers", "model.global_transformer.layers", "model.local_decoder.layers"],
}


@pytest.mark.parametrize("name", STACKS)
def test_the_blocks_of_several_stacks_are_named_and_listed_in_running_order(name: str) -> None:
    model = model_of(name)
    anatomy = find_anatomy(model)
    assert anatomy.blocks_path == ", ".join(STACKS[name])
    paths = [f"{stack}.{index}" for stack in STACKS[name] for index in range(len(model.get_submodule(stack)))]
    assert anatomy.block_paths == paths
    assert all(block is model.get_submodule(path) for block, path in zip(anatomy.blocks, paths, strict=True))
    assert order_of_first_runs(model, sorted(paths)) == paths


def test_what_else_reads_the_ids_is_no_stack() -> None:
    """Blt's patcher has layers of the same kind, which run before all others."""
    model = model_of("blt")
    patcher = [path for path, part in model.named_modules() if path.startswith("model.patcher.layers.")]
    layers = [path for path in patcher if path.count(".") == 3]
    assert layers
    first = find_anatomy(model).block_paths[0]
    assert order_of_first_runs(model, [*layers, first]) == [*layers, first]
    assert not any(path.startswith("model.patcher") for path in find_anatomy(model).block_paths)


@pytest.mark.parametrize("name", STACKS)
def test_sites_go_through_all_stacks(name: str) -> None:
    subject = probekit.Subject(model_of(name))
    paths = subject.anatomy.block_paths
    assert subject.sites()[: len(paths) + 1] == ["embedding", *(f"block.{index}" for index in range(len(paths)))]
    first_of_last = len(paths) - len(subject.model.get_submodule(STACKS[name][-1]))  # type: ignore[arg-type]
    captured = subject.capture(IDS, [f"block.{first_of_last}", STACKS[name][-1] + ".0", "block.-1", paths[-1]])
    assert torch.equal(captured[f"block.{first_of_last}"], captured[STACKS[name][-1] + ".0"])
    assert torch.equal(captured["block.-1"], captured[paths[-1]])


# --- parallel lists ---------------------------------------------------------------------------------------------------


def test_where_a_block_is_spread_over_parallel_lists_the_one_that_ends_it_holds_the_blocks() -> None:
    model = model_of("xlm")
    with torch.no_grad():
        output = copy.deepcopy(model)(input_ids=IDS, output_hidden_states=True)
    subject = probekit.Subject(model)
    assert subject.anatomy.blocks_path == "transformer.layer_norm2"
    assert subject.anatomy.block_paths == [f"transformer.layer_norm2.{index}" for index in range(3)]
    captured = subject.capture(IDS, [f"block.{index}" for index in range(3)])
    assert len(output.hidden_states) == 4
    for activation, expected in zip(captured.values(), output.hidden_states[1:], strict=True):
        assert torch.equal(activation, expected)


class Spread(nn.Module):
    """A causal language model (of one token's memory) with parallel lists that run in turns, and maybe no link."""

    def __init__(self, between: Any = torch.clone, lists: tuple[str, ...] = ("mixing", "mapping")) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=3, vocab_size=11, pad_token_id=None)
        self.words = nn.Embedding(11, 8)
        self.lists = lists
        for name in lists:
            self.add_module(name, nn.ModuleList(nn.Linear(8, 8) for _ in range(3)))
        self.between = between
        self.head = nn.Linear(8, 11, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids)
        for index in range(3):
            for name in self.lists:
                states = self.get_submodule(f"{name}.{index}")(states)
            states = self.between(states)
        return CausalLMOutput(logits=self.head(states))


@pytest.mark.parametrize("lists", [("mixing", "mapping"), ("mapping", "mixing"), ("a", "b", "c", "d")])
def test_the_list_whose_output_goes_on_into_the_next_turn_holds_the_blocks(lists: tuple[str, ...]) -> None:
    anatomy = find_anatomy(Spread(lists=lists))
    assert anatomy.blocks_path == lists[-1]
    assert anatomy.block_paths == [f"{lists[-1]}.{index}" for index in range(3)]


@pytest.mark.parametrize("between", [torch.neg, lambda states: states * 1.001], ids=["turned", "scaled"])
def test_parallel_lists_that_are_not_linked_are_an_error_and_no_guess(between: Any) -> None:
    """What comes after the last list is a part of the block: none of the lists ends it."""
    with pytest.raises(ModelError) as raised:
        find_anatomy(Spread(between))
    assert str(raised.value) == (
        "Several lists of modules in Spread could be its 3 decoder blocks; the lists are: mixing (3), mapping (3). "
        "Say which one with --blocks PATH (or the hook probekit_anatomy)."
    )
    assert find_anatomy(Spread(between), {"blocks": "mixing"}).blocks_path == "mixing"


class OutOfTurn(Spread):
    """The same lists, the second one backwards."""

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        states = self.words(input_ids)
        first, second = (list(self.get_submodule(name)) for name in self.lists)  # type: ignore[arg-type]
        for one, other in zip(first, reversed(second), strict=True):
            states = other(one(states))
        return CausalLMOutput(logits=self.head(states))


def test_parallel_lists_that_do_not_run_in_turns_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"^Several lists of modules in OutOfTurn could be its 3 decoder blocks"):
        find_anatomy(OutOfTurn())


# --- stacks that a model does not declare ----------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.linear(states)


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + self.linear(states) / 10


class Stacked(nn.Module):
    """A causal language model (of one token's memory) of two stacks, and a third that sees ids of its own."""

    _can_record_outputs: ClassVar[Any] = None

    def __init__(self, order: tuple[str, ...] = ("low", "high"), before: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=5, vocab_size=11, pad_token_id=None)
        self.order = order
        self.words = nn.Embedding(11, 8)
        self.others = nn.Embedding(11, 8)
        self.high = nn.ModuleList(Layer() for _ in range(2))
        self.low = nn.ModuleList(Layer() for _ in range(3))
        self.patcher = nn.ModuleList(Layer() for _ in range(2 if before else 0))
        self.adapters = nn.ModuleList(Adapter() for _ in range(2))
        self.after = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        apart = self.others(input_ids)
        for layer in self.patcher:
            apart = layer(apart)
        states = self.words(input_ids)
        for name in self.order:
            for layer in self.get_submodule(name):  # type: ignore[attr-defined]
                states = layer(states)
        for adapter in self.adapters:
            states = adapter(states)
        return CausalLMOutput(logits=self.head(self.after(states) + 0 * apart))


class Declaring(Stacked):
    """The same, and it declares its hidden states as the models of transformers do."""

    _can_record_outputs: ClassVar[Any] = {"hidden_states": Layer}


def test_two_stacks_that_the_model_does_not_declare_are_an_error_and_no_guess() -> None:
    with pytest.raises(ModelError) as raised:
        find_anatomy(Stacked())
    assert str(raised.value) == (
        "No list of modules in Stacked could be its 5 decoder blocks; the lists are: high (2), low (3), adapters (2). "
        "Say which one with --blocks PATH (or the hook probekit_anatomy)."
    )


@pytest.mark.parametrize("order", [("low", "high"), ("high", "low")])
def test_declared_stacks_can_be_several_joined_by_commas(order: tuple[str, str]) -> None:
    model = Stacked(order)
    lengths = {"low": 3, "high": 2}
    subject = probekit.Subject(model, anatomy={"blocks": f"{order[0]},  {order[1]}"})
    anatomy = subject.anatomy
    assert anatomy.blocks_path == f"{order[0]}, {order[1]}"
    assert anatomy.block_paths == [f"{name}.{index}" for name in order for index in range(lengths[name])]
    assert anatomy.blocks == [model.get_submodule(path) for path in anatomy.block_paths]
    assert anatomy.norm is model.after
    assert subject.sites() == ["embedding", *(f"block.{index}" for index in range(5)), "norm", "logits"]
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        states = model.words(ids)
        for index, block in enumerate(anatomy.blocks):
            states = block(states)
            assert torch.equal(subject.capture(ids, [f"block.{index}"])[f"block.{index}"], states)
            assert torch.equal(subject.layer_map(f"block.{index}")(model.words(ids)), states)


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ("low, hihg", r"no module 'hihg'\. Did you mean 'high'\?"),
        ("low, head", r"'head' is a Linear, not a list of decoder blocks"),
        ("low,", r"'' is a Stacked, not a list of decoder blocks"),
        ("patcher", r"'patcher' is a ModuleList, not a list of decoder blocks"),  # it is empty
    ],
)
def test_a_wrong_one_among_declared_stacks_is_an_error(blocks: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        find_anatomy(Stacked(), {"blocks": blocks})


@pytest.mark.parametrize("order", [("low", "high"), ("high", "low")])
def test_stacks_of_what_the_model_calls_its_hidden_states_are_found_in_running_order(order: tuple[str, str]) -> None:
    """Neither what is of another kind nor what does not depend on the embedding is among them."""
    anatomy = find_anatomy(Declaring(order, before=True).requires_grad_(False))
    assert anatomy.blocks_path == ", ".join(order)
    assert "patcher" not in anatomy.blocks_path


def test_a_declared_stack_that_does_not_run_is_not_among_the_blocks() -> None:
    assert find_anatomy(Declaring(("high",))).blocks_path == "high"


@pytest.mark.parametrize(
    "declared", [{"hidden_states": [Layer]}, {"hidden_states": SimpleNamespace(target_class=Layer)}]
)
def test_each_way_to_declare_hidden_states_is_read(declared: Any) -> None:
    model = Stacked()
    model._can_record_outputs = declared
    assert find_anatomy(model).blocks_path == "low, high"


@pytest.mark.parametrize(
    "declared", [{}, {"attentions": Layer}, {"hidden_states": "Layer"}, "Layer", {"hidden_states": None}]
)
def test_a_declaration_that_says_nothing_of_hidden_states_is_none(declared: Any) -> None:
    model = Stacked()
    model._can_record_outputs = declared
    with pytest.raises(ModelError, match="No list of modules in Stacked could be its 5 decoder blocks"):
        find_anatomy(model)


# --- the norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("nanochat", "model.norm"),  # without parameters
        ("inkling2_text", "model.norm"),  # another norm stands beside it, of the embeddings
        ("roberta-prelayernorm", "roberta_prelayernorm.LayerNorm"),  # one module further up than the blocks
        ("hrm_text", "model.H_module.final_norm"),  # the second stack's own
        ("blt", "model.local_decoder.norm"),
        ("roberta", None),  # each block ends with one
        ("xlm", None),
    ],
)
def test_the_final_norm_is_what_runs_behind_the_last_block(name: str, path: str | None) -> None:
    model = model_of(name)
    anatomy = find_anatomy(model)
    assert anatomy.norm_path == path
    assert anatomy.norm is (None if path is None else model.get_submodule(path))
    if path is None:
        return
    # The reference: of the modules of this class, it runs last, and behind the last block.
    kind = type(model.get_submodule(path))
    alike = [name for name, part in model.named_modules() if type(part) is kind]
    runs: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.append(name))
        for name in dict.fromkeys([*alike, anatomy.block_paths[-1]])
    ]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    behind = runs[len(runs) - runs[::-1].index(anatomy.block_paths[-1]) :]
    assert path in behind


def test_looking_leaves_nothing_on_the_model() -> None:
    model = Declaring(before=True).train()
    model.head.eval()
    find_anatomy(model)
    assert model.low.training
    assert not model.head.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
