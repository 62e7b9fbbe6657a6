"""What makes a step fast is not seen: a layer map that replays the calls of the blocks gives what the model gives.

The reference is a new layer map for each call, whose first call always goes through the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import probekit

SHAPE = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 16}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=32, n_positions=16, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, **ENDS)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **HEADS, **ENDS, head_dim=8)),  # masks by block
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SHAPE, **ENDS, state_size=4)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SHAPE, n_head=2)),  # a norm before the first block
}


@pytest.fixture
def subject() -> probekit.Subject:
    torch.manual_seed(0)
    return probekit.Subject(gpt2())


def points(count: int = 1, batch: int = 2, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(batch, 5, width, generator=generator) for _ in range(count)]


def value_and_slope(layer_map: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> list[torch.Tensor]:
    embeddings = at.clone().requires_grad_(True)
    activation = layer_map(embeddings)
    (slope,) = torch.autograd.grad(activation.float().square().sum(), embeddings)
    return [activation.detach(), slope]


def descended(layer_map: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Take the first steps, after which calls are replayed."""
    for at in points(3):
        value_and_slope(layer_map, at)


def assert_same(subject: probekit.Subject, layer_map: probekit.LayerMap, **given: torch.Tensor) -> None:
    [at] = points(1)
    for found, reference in zip(
        value_and_slope(layer_map, at), value_and_slope(subject.layer_map(layer_map.site, **given), at), strict=True
    ):
        assert torch.equal(found, reference)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many forward passes of its own GPT-2 has made, as the length of a list; the class is watched, no module."""
    calls: list[int] = []
    original = GPT2Model.forward

    def counted(self: GPT2Model, *arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(GPT2Model, "forward", counted)
    return calls


@pytest.mark.parametrize("site", ["block.0", "block.2"])
@pytest.mark.parametrize("name", MODELS)
def test_every_call_of_a_descent_gives_the_models_own_bits(name: str, site: str) -> None:
    torch.manual_seed(0)
    subject = probekit.Subject(MODELS[name]())
    layer_map = subject.layer_map(site)
    for at in points(6):
        reference = value_and_slope(subject.layer_map(site), at)
        assert all(map(torch.equal, value_and_slope(layer_map, at), reference))
        with torch.no_grad():
            assert torch.equal(layer_map(at), reference[0])


def test_a_descent_makes_three_passes_of_the_whole_model_and_then_none(
    subject: probekit.Subject, forwards: list[int]
) -> None:
    layer_map = subject.layer_map("block.1")
    before = len(forwards)
    seen = []
    for at in points(6):
        value_and_slope(layer_map, at)
        seen.append(len(forwards) - before)
    assert seen == [1, 3, 3, 3, 3, 3]  # the second step is recorded, which takes a pass over zeros as well


def test_a_call_or_two_without_gradients_make_one_pass_each(subject: probekit.Subject, forwards: list[int]) -> None:
    layer_map = subject.layer_map("block.1")
    before = len(forwards)
    with torch.no_grad():
        for at in points(4):
            layer_map(at)
    assert len(forwards) - before == 4


@pytest.mark.parametrize(
    "edited", ["block.0", "block.1", "transformer.h.0.mlp", "embedding", "transformer.wpe", "transformer", "logits"]
)
@pytest.mark.parametrize("when", ["after the first steps", "from the start"])
def test_an_edit_acts_wherever_it_is(subject: probekit.Subject, edited: str, when: str) -> None:
    layer_map = subject.layer_map("block.1")
    if when == "after the first steps":
        descended(layer_map)
    with subject.edit(edited, lambda activation: activation * 1.5 + 0.1):
        descended(layer_map)
        assert_same(subject, layer_map)
    assert_same(subject, layer_map)


def test_hooks_of_others_see_each_step_once(subject: probekit.Subject) -> None:
    layer_map = subject.layer_map("block.1")
    seen: list[int] = []
    for number, block in enumerate(subject.anatomy.blocks):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    for at in points(5):
        value_and_slope(layer_map, at)
    assert seen == [0, 1] * 5


def change_in_place(model: Any) -> None:
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(2)


def change_the_parameter(model: Any) -> None:
    model.transformer.wpe.weight = nn.Parameter(model.transformer.wpe.weight.detach() * 2)


def change_the_data(model: Any) -> None:
    model.transformer.wpe.weight.data = model.transformer.wpe.weight.data * 2


def change_the_forward(model: Any) -> None:
    original = model.transformer.wpe.forward
    model.transformer.wpe.forward = lambda positions: original(positions) * 2


def change_the_attention(model: Any) -> None:
    model.set_attn_implementation("eager")


def change_the_embedding(model: Any) -> None:
    model.transformer.wpe.register_forward_hook(lambda _module, _inputs, output: output * 2)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_the_parameter,
        change_the_data,
        change_the_forward,
        change_the_attention,
        change_the_embedding,
    ],
)
def test_a_change_of_what_is_left_out_is_seen(subject: probekit.Subject, change: Callable[[Any], None]) -> None:
    layer_map = subject.layer_map("block.1")
    descended(layer_map)
    change(subject.model)
    assert_same(subject, layer_map)


def test_a_mask_acts_and_so_does_a_change_of_it(subject: probekit.Subject) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    layer_map = subject.layer_map("block.1", attention_mask=mask)
    descended(layer_map)
    assert_same(subject, layer_map, attention_mask=mask)
    mask[0, 1] = 0
    assert_same(subject, layer_map, attention_mask=mask)
    [at] = points(1)
    assert not torch.equal(layer_map(at), subject.layer_map("block.1")(at))


def test_token_ids_made_for_inference_are_no_obstacle(subject: probekit.Subject) -> None:
    with torch.inference_mode():
        ids = torch.tensor([[3, 4, 5, 6, 7]])
    layer_map = subject.layer_map("block.1", input_ids=ids)
    descended(layer_map)
    assert_same(subject, layer_map, input_ids=ids)


def test_each_shape_and_dtype_has_calls_of_its_own(subject: probekit.Subject) -> None:
    layer_map = subject.layer_map("block.1")
    for _ in range(3):
        for at in [points(1)[0], points(1, batch=3)[0], points(1)[0][:, :2], points(1)[0].double()]:
            reference = value_and_slope(subject.layer_map("block.1"), at)
            assert all(map(torch.equal, value_and_slope(layer_map, at), reference))


def test_more_shapes_than_are_remembered_are_no_obstacle(subject: probekit.Subject) -> None:
    layer_map = subject.layer_map("block.1")
    for _ in range(3):
        for batch in range(1, 13):
            [at] = points(1, batch)
            reference = value_and_slope(subject.layer_map("block.1"), at)
            assert all(map(torch.equal, value_and_slope(layer_map, at), reference))


def test_a_model_in_bfloat16_takes_embeddings_in_float32() -> None:
    torch.manual_seed(0)
    subject = probekit.Subject(gpt2().to(torch.bfloat16))
    layer_map = subject.layer_map("block.1")
    descended(layer_map)
    assert_same(subject, layer_map)
    [at] = points(1)
    assert layer_map(at).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, on first use
def test_jacobian_products_are_the_same_before_and_after(subject: probekit.Subject) -> None:
    subject.model.requires_grad_(False)
    layer_map = subject.layer_map("block.1")
    at, direction = points(2, batch=1)

    def products() -> list[torch.Tensor]:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            _, forward_mode = torch.func.jvp(layer_map, (at,), (direction,))
            _, pull = torch.func.vjp(layer_map, at)
        return [forward_mode, *pull(direction)]

    before = products()
    descended(layer_map)
    for _ in range(2):
        value_and_slope(layer_map, at)
    assert all(map(torch.equal, before, products()))


def test_nothing_is_left_on_the_model_nor_taken_from_the_generator(
    subject: probekit.Subject, assert_untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    state = torch.get_rng_state()
    with assert_untouched(subject.model):
        descended(subject.layer_map("block.1"))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_inside_a_replayed_block_comes_out_and_leaves_nothing(
    subject: probekit.Subject, assert_untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    layer_map = subject.layer_map("block.1")
    descended(layer_map)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with assert_untouched(subject.model):
        handle = subject.anatomy.blocks[0].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            layer_map(points(1)[0])
        handle.remove()
    assert_same(subject, layer_map)
