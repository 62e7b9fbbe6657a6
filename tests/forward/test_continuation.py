"""Continuations of one prefix: what whole sequences give, with the prefix computed once where the model allows it."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaForCausalLM

import probekit
from tests import second_device
from tests.forward.test_two_devices import on_cpu, placed
from tests.forward.tiny import make, named, tiny
from tests.models.test_offload import blocks_on_disk, in_cpu_memory, on_disk

PREFIX = torch.tensor([25, 37, 23, 64, 29, 70, 28, 41, 22, 50])  # longer than the windows of tiny models, 4
TOKENS = torch.tensor([[31, 44, 23], [65, 28, 80], [31, 90, 77], [50, 50, 50]])
# Attention over all that is before, over windows, over both in turn; a state; both; experts; distances for positions.
CACHED = ("gpt2", "llama", "mistral", "gemma3_text", "gemma2", "mamba", "falcon_h1", "qwen3_next", "mixtral", "bloom")
# Without a cache; looking ahead; with one of its own making; with one that it keeps on its modules; with several rows
# of positions, or positions of its own before the prompt's.
WHOLE = ("openai-gpt", "bert", "minimax", "recurrent_gemma", "xlnet", "rwkv", "prophetnet", "cpmant")
SITES = ("block.0", "block.-1", "norm", "logits")


def expected(subject: probekit.Subject, site: str, tokens: torch.Tensor, prefix: torch.Tensor = PREFIX) -> torch.Tensor:
    """By whole sequences."""
    ids = torch.cat([prefix.flatten().expand(len(tokens), -1), tokens], 1)
    return subject.capture(ids, [site])[site][:, prefix.numel() :]


def assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert not found.requires_grad
    assert float((found - wanted).float().norm() / wanted.float().norm()) < tolerance


@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """How many positions this block computes in each of its runs."""
    seen: list[int] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        shape = (output if isinstance(output, torch.Tensor) else output[0]).shape
        seen.append(shape[0] * shape[1])

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CACHED)
def test_a_prefix_that_is_computed_once_gives_what_whole_sequences_give(name: str, dtype: torch.dtype) -> None:
    subject = probekit.Subject(named(name).to(dtype))
    for site in SITES if name == "llama" else ("block.-1",):
        continuation = subject.continuation(PREFIX, site)
        assert continuation.cached
        for tokens in (TOKENS[:, :1], TOKENS, TOKENS[:1, :2], TOKENS[:, :1]):
            assert_close(
                continuation(tokens), expected(subject, site, tokens), 1e-5 if dtype == torch.float32 else 0.02
            )


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_gives_something_else_from_a_cache_computes_whole_sequences(name: str) -> None:
    subject = probekit.Subject(named(name))
    state = {path: set(vars(part)) for path, part in subject.model.named_modules()}
    continuation = subject.continuation(PREFIX, "block.-1")
    assert not continuation.cached
    for tokens in (TOKENS[:, :1], TOKENS):
        assert torch.equal(continuation(tokens), expected(subject, "block.-1", tokens))
    assert {path: set(vars(part)) for path, part in subject.model.named_modules()} == state


def test_a_model_of_one_length_computes_whole_sequences_of_that_length() -> None:
    subject = probekit.Subject(named("gpt2"), anatomy={"sequence": 12})
    continuation = subject.continuation(PREFIX, "block.0")
    assert not continuation.cached
    assert torch.equal(continuation(TOKENS[:, :2]), expected(subject, "block.0", TOKENS[:, :2]))
    with pytest.raises(probekit.UsageError, match="reads exactly 12 tokens; the prompt with its continuation has 13"):
        continuation(TOKENS)


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "nf4"}], ids=str
)
def test_the_embedded_model_in_every_precision(options: dict[str, Any]) -> None:
    subject = probekit.load("demo", **options)
    for site in ("embedding", "block.-1", "transformer.h.1.mlp", "logits"):
        continuation = subject.continuation(PREFIX, site)
        assert continuation.cached
        assert_close(continuation(TOKENS), expected(subject, site, TOKENS), 0.02 if options else 1e-5)


@pytest.mark.parametrize("prefix", [PREFIX[:0], PREFIX[None, :0]], ids=["[0]", "[1, 0]"])
def test_an_empty_prefix_leaves_the_tokens(prefix: torch.Tensor) -> None:
    subject = probekit.Subject(named("gpt2"))
    continuation = subject.continuation(prefix, "block.1")
    assert torch.equal(continuation(TOKENS), subject.capture(TOKENS, ["block.1"])["block.1"])


@pytest.mark.parametrize("name", ["gpt2", "mistral", "mamba", "falcon_h1"])
def test_the_prefix_is_computed_at_the_first_call_and_never_again(name: str) -> None:
    subject = probekit.Subject(named(name))
    blocks = subject.anatomy.blocks
    continuation = subject.continuation(PREFIX[None], "block.1")
    with counting(blocks[0]) as seen, counting(blocks[2]) as past:
        first = continuation(TOKENS[:, :1])
        assert seen == [PREFIX.numel(), len(TOKENS)]
        other, several = continuation(TOKENS[:, 1:2]), continuation(TOKENS)
        assert sum(seen) == PREFIX.numel() + 2 * len(TOKENS) + TOKENS.numel()
        assert torch.equal(continuation(TOKENS[:, :1]), first)
        assert torch.equal(continuation(TOKENS[:, 1:2]), other)
        assert torch.equal(continuation(TOKENS), several)
    assert past == []


def test_two_continuations_of_one_subject_do_not_mix() -> None:
    subject = probekit.Subject(named("llama"))
    one, other = (subject.continuation(prefix, "block.2") for prefix in (PREFIX, PREFIX.flip(0)))
    for _ in range(2):
        assert_close(one(TOKENS), expected(subject, "block.2", TOKENS))
        assert_close(other(TOKENS), expected(subject, "block.2", TOKENS, PREFIX.flip(0)))


def test_keys_and_values_of_all_sequences_are_never_held_for_more_than_a_block() -> None:
    subject = probekit.Subject(named("gpt2"))
    continuation = subject.continuation(PREFIX, "block.2")
    given: list[Any] = []
    subject.anatomy.blocks[2].register_forward_pre_hook(
        lambda _module, inputs, keywords: given.extend([*inputs, *keywords.values()]), with_kwargs=True
    )
    continuation(TOKENS)
    prefix, cache = (part for part in given if hasattr(part, "layers"))
    assert [layer.keys.shape[::2] for layer in prefix.layers] == [(1, PREFIX.numel())] * 3
    assert [layer.keys.shape[::2] for layer in cache.layers] == [(1, PREFIX.numel())] * 3


@pytest.mark.parametrize("name", ["gpt2", "mamba", "recurrent_gemma"])
def test_nothing_is_left_on_the_model(
    name: str, assert_untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    model = named(name).train().requires_grad_(True)
    subject = probekit.Subject(model)
    with assert_untouched(model):
        for prefix in (PREFIX, PREFIX[:0]):
            continuation = subject.continuation(prefix, "block.1")
            assert torch.equal(continuation(TOKENS), continuation(TOKENS))
        with pytest.raises(probekit.UsageError):
            continuation(TOKENS + 1000)


def test_hooks_come_off_where_a_module_fails(
    monkeypatch: pytest.MonkeyPatch, assert_untouched: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    subject = probekit.Subject(named("gpt2"))
    continuation = subject.continuation(PREFIX, "block.2")
    with assert_untouched(subject.model):
        with monkeypatch.context() as patch:
            patch.setattr(subject.anatomy.blocks[1], "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                continuation(TOKENS)
        assert_close(continuation(TOKENS), expected(subject, "block.2", TOKENS))


@pytest.mark.parametrize("moment", ["the check", "the prefix", "the tokens"])
def test_running_out_of_memory_is_never_taken_for_a_model_without_a_cache(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = probekit.Subject(named("gpt2"))
    block = subject.anatomy.blocks[0]
    forward: Callable[..., Any] = block.forward

    def full(*arguments: Any, **keywords: Any) -> Any:
        if any(hasattr(part, "layers") for part in (*arguments, *keywords.values())):  # only where there is a cache
            raise torch.OutOfMemoryError("out of memory")
        return forward(*arguments, **keywords)

    continuation = None if moment == "the check" else subject.continuation(PREFIX, "block.2")
    if continuation is not None and moment == "the tokens":
        continuation(TOKENS)
    with monkeypatch.context() as patch:
        patch.setattr(block, "forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            (continuation or subject.continuation(PREFIX, "block.2"))(TOKENS)
    continuation = subject.continuation(PREFIX, "block.2")
    assert continuation.cached
    assert_close(continuation(TOKENS), expected(subject, "block.2", TOKENS))


@pytest.mark.parametrize("edited", ["block.0", "block.2", "transformer.h.1.mlp"])
def test_an_edit_acts_as_in_whole_sequences_while_it_is_open(edited: str) -> None:
    subject = probekit.Subject(named("gpt2"))
    before = subject.continuation(PREFIX, "block.2")
    plain = before(TOKENS)

    def edit(activation: torch.Tensor) -> torch.Tensor:
        activation[:, 3] = 0.5  # a position of the prefix
        return activation * torch.linspace(0.5, 1.5, activation.shape[1])[:, None]

    with subject.edit(edited, edit):
        wanted = expected(subject, "block.2", TOKENS)
        assert not torch.allclose(wanted, plain, rtol=1e-3)
        inside = subject.continuation(PREFIX, "block.2")
        for _ in range(2):
            assert torch.equal(before(TOKENS), wanted)
            assert torch.equal(inside(TOKENS), wanted)
    for continuation in (before, inside):
        assert continuation.cached
        assert_close(continuation(TOKENS), plain)


def test_a_hook_that_others_put_on_between_calls_acts_on_the_prefix_too() -> None:
    subject = probekit.Subject(named("llama"))
    continuation = subject.continuation(PREFIX, "block.2")
    plain = continuation(TOKENS)
    handle = subject.anatomy.blocks[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert_close(continuation(TOKENS), expected(subject, "block.2", TOKENS))
    handle.remove()
    assert torch.equal(continuation(TOKENS), plain)


def test_angles_that_go_by_the_length_are_those_of_the_whole_sequence() -> None:
    """As phi-3's for long contexts: from some length on, all positions are turned by others."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 12, **factors}
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    subject = probekit.Subject(LlamaForCausalLM(config))
    for length in (9, 10, 11, 12, 13):
        prefix = torch.arange(length) + 20
        continuation = subject.continuation(prefix, "block.2")
        for new in (1, 3, 1):
            assert_close(continuation(TOKENS[:, :new]), expected(subject, "block.2", TOKENS[:, :new], prefix))


def test_padding_ids_are_computed_whole_where_a_model_takes_positions_from_where_they_stand() -> None:
    config = tiny(RobertaConfig)
    config.is_decoder = True
    subject = probekit.Subject(make(RobertaForCausalLM, config))
    tokens = torch.cat([TOKENS, TOKENS.new_full((1, 3), config.pad_token_id)])
    continuation = subject.continuation(PREFIX, "block.-1")
    assert continuation.cached
    assert_close(continuation(TOKENS), expected(subject, "block.-1", TOKENS))
    assert torch.equal(continuation(tokens), expected(subject, "block.-1", tokens))


@pytest.mark.parametrize("offload", [on_disk, blocks_on_disk, in_cpu_memory])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba"])
def test_offloaded_weights_give_what_resident_ones_do(
    name: str, offload: Callable[[nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    resident, offloaded = probekit.Subject(named(name)), probekit.Subject(offload(named(name), tmp_path))
    for site in ("block.0", "block.-1", "logits"):
        one, other = (subject.continuation(PREFIX, site) for subject in (resident, offloaded))
        assert one.cached
        assert other.cached
        for tokens in (TOKENS[:, :1], TOKENS):
            assert torch.equal(one(tokens), other(tokens))
    assert all(weight.is_meta for weight in offloaded.anatomy.blocks[0].parameters())


def is_the_same_elsewhere(name: str, placement: str) -> None:
    cpu, spread = on_cpu(name), placed(name, placement)
    for site in ("block.0", "block.-1", "logits"):
        one, other = (subject.continuation(PREFIX, site) for subject in (cpu, spread))
        assert one.cached
        assert other.cached
        for tokens in (TOKENS[:, :1], TOKENS):
            assert torch.equal(one(tokens), other(tokens).cpu())


@pytest.mark.skipif(not second_device.is_possible(), reason="torch takes no devices made in Python")
def test_on_two_devices_it_is_that_of_the_cpu_bit_for_bit() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), second_device.register) as process:
        for name in ("gpt2", "llama"):
            for placement in ("two devices", "the CPU, then a device", "a device, the rest offloaded"):
                process.submit(is_the_same_elsewhere, name, placement).result()


@pytest.mark.parametrize(
    ("prefix", "site", "message"),
    [
        (PREFIX.view(2, 5), "block.0", r"The prefix has the shape \(2, 5\)"),
        (PREFIX.view(1, 2, 5), "block.0", r"The prefix has the shape \(1, 2, 5\)"),
        (PREFIX.float(), "block.0", r"the type torch.float32; expected token ids"),
        (PREFIX + 45, "block.0", r"The token id 115 is outside the vocabulary of this model; ids go from 0 to 95"),
        (-PREFIX, "block.0", r"The token id -70 is outside the vocabulary"),
        (PREFIX, "block.9", r"There is no site 'block.9': the model has 3 blocks"),
        (PREFIX, "nowhere", r"There is no site 'nowhere'; the sites are"),
    ],
)
def test_a_wrong_prefix_or_site_is_said_in_a_sentence(prefix: torch.Tensor, site: str, message: str) -> None:
    with pytest.raises(probekit.UsageError, match=message):
        probekit.Subject(named("gpt2")).continuation(prefix, site)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[0], r"Tokens have the shape \(3,\).*expected token ids \[sequences, tokens\]"),
        (TOKENS[:0], r"Tokens have the shape \(0, 3\).*at least one of each"),
        (TOKENS[:, :0], r"Tokens have the shape \(4, 0\)"),
        (TOKENS.float(), r"the type torch.float32"),
        (TOKENS > 0, r"the type torch.bool"),
        (TOKENS + 90, r"The token id 113 is outside the vocabulary"),
        (TOKENS - 40, r"The token id -17 is outside the vocabulary"),
        (TOKENS.repeat(1, 20), r"with its continuation has 70 tokens, but the model's context is 64; shorten it"),
    ],
)
def test_wrong_tokens_are_said_in_a_sentence(tokens: torch.Tensor, message: str) -> None:
    continuation = probekit.Subject(named("gpt2")).continuation(PREFIX, "block.0")
    with pytest.raises(probekit.UsageError, match=message):
        continuation(tokens)
    assert continuation(TOKENS).shape == (4, 3, 32)


def test_a_site_without_an_activation_for_each_position_is_refused() -> None:
    subject = probekit.Subject(named("llama"))
    path = "model.rotary_emb"
    with pytest.raises(probekit.UsageError, match=r"'model.rotary_emb' returned \(1, .*one activation for each"):
        subject.continuation(PREFIX, path)(TOKENS)
