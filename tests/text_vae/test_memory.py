"""Memory: z among the keys and values of a model's blocks, against attention by hand and in many architectures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, MambaConfig, MistralConfig
from transformers.cache_utils import DynamicCache

import probekit
from probekit_plugins.text_vae.decoders import Decoder, Lstm, T5Decoder
from probekit_plugins.text_vae.memory import Memory, Slot, memory_of
from probekit_plugins.text_vae.t5 import sizes_of, t5

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def gpt2(blocks: int = 2) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=blocks, n_embd=16, n_head=2, n_positions=16, vocab_size=20, bos_token_id=0)
    return GPT2LMHeadModel(config).eval().double()


def decoder(model: nn.Module, injection: Any = "memory") -> Decoder:
    torch.manual_seed(1)
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    made = Decoder(model, embedding, 4, injection)
    return made.to(next(model.parameters()).dtype)


def test_a_memory_is_attended_to_as_one_more_key_that_is_its_own_value() -> None:
    model = gpt2(1)
    made = decoder(model)
    z = torch.randn(1, 4, dtype=torch.double)
    block, count = model.transformer.h[0], IDS.shape[1]
    positions = torch.arange(1, count + 1)  # after the memory, which stands at 0
    h = model.transformer.wte(IDS) + model.transformer.wpe(positions)
    q, k, v = block.attn.c_attn(block.ln_1(h)).split(16, -1)
    memory = made.to_memory(z)[:, None]
    k, v = torch.cat([memory, k], 1), torch.cat([memory, v], 1)
    q, k, v = (each.view(1, -1, 2, 8).transpose(1, 2) for each in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    seen = torch.ones(count, count + 1).tril(1).bool()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    h = h + block.attn.c_proj((weights @ v).transpose(1, 2).reshape(1, count, 16))
    h = h + block.mlp(block.ln_2(h))
    expected = model.lm_head(model.transformer.ln_f(h))
    assert torch.allclose(made(IDS, z), expected, atol=1e-12)


def test_a_vector_that_is_embedded_is_added_to_every_token_and_leaves_no_hook() -> None:
    model = gpt2()
    made, z = decoder(model, "embedding"), torch.randn(1, 4, dtype=torch.double)
    embeddings = model.transformer.wte(IDS) + made.to_embedding(z)
    assert torch.allclose(made(IDS, z), model(inputs_embeds=embeddings).logits, atol=1e-12)
    assert torch.equal(made(IDS), model(IDS).logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_hook_stays_where_the_model_raises() -> None:
    model = gpt2()
    made = decoder(model, "embedding")
    with pytest.raises(IndexError):
        made(torch.tensor([[99]]), torch.zeros(1, 4, dtype=torch.double))
    assert not any(module._forward_hooks for module in model.modules())


def of(kind: str, **sizes: Any) -> nn.Module:
    kinds = {"llama": LlamaConfig, "mistral": MistralConfig}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 20}
    torch.manual_seed(0)
    config = kinds[kind](**shape, num_attention_heads=4, **sizes)
    return AutoModelForCausalLM.from_config(config).eval().double()


@pytest.mark.parametrize("injection", ["memory", "both"])
@pytest.mark.parametrize(
    "model",
    [
        of("llama", num_key_value_heads=4),
        of("llama", num_key_value_heads=2),
        of("mistral", num_key_value_heads=1, sliding_window=8),
        gpt2(),
    ],
    ids=["rotary", "grouped queries", "a window", "learnt positions"],
)
def test_every_block_takes_a_memory_of_its_own_and_gradients_come_back_to_z(model: Any, injection: str) -> None:
    made = decoder(model, injection)
    width = 16 // model.config.num_attention_heads
    assert made._memory is not None
    assert made._memory.slots == (Slot(getattr(model.config, "num_key_value_heads", 2), width, width),) * 2
    z = torch.randn(1, 4, dtype=torch.double, requires_grad=True)
    weight = made.to_memory.weight.detach().clone()
    for block in range(2):  # each block's own part moves the logits
        with torch.no_grad():
            made.to_memory.weight.copy_(weight).view(2, -1, 4)[1 - block] = 0
        assert not torch.allclose(made(IDS, z), made(IDS, z * 0), rtol=1e-9, atol=1e-9)
    made.to_memory.weight.data.copy_(weight)
    value = made(IDS, z)[0, -1, 7]
    (gradient,) = torch.autograd.grad(value, z)
    step = 1e-3 * torch.ones_like(z)  # norms compute in fp32
    with torch.no_grad():
        slope = (made(IDS, z + step)[0, -1, 7] - made(IDS, z - step)[0, -1, 7]) / 2e-3
    assert float(slope) == pytest.approx(float(gradient.sum()), rel=1e-2)


@pytest.mark.parametrize("kind", ["memory", "embedding", "both"])
def test_each_text_of_a_batch_has_its_own_z_and_padding_behind_it_changes_nothing(kind: str) -> None:
    made = decoder(of("llama", num_key_value_heads=2), kind)
    z = torch.randn(3, 4, dtype=torch.double)
    ids = torch.randint(20, (3, 6), generator=torch.Generator().manual_seed(0))
    whole = made(ids, z)
    for row in range(3):
        assert torch.allclose(whole[row : row + 1, :4], made(ids[row : row + 1, :4], z[row : row + 1]), atol=1e-10)


def test_a_model_without_keys_and_values_is_told_what_to_do() -> None:
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=20, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(probekit.UsageError, match=r"MambaForCausalLM keeps no keys and values .*injection=embedding"):
        decoder(model)
    made = decoder(model, "embedding")
    assert not torch.allclose(made(IDS, torch.ones(1, 4)), made(IDS, torch.zeros(1, 4)))


def test_a_model_that_passes_its_cache_over_is_refused() -> None:
    model = gpt2()

    def deaf(ids: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        if cache is not None and cache.get_seq_length() == 0:
            return model(ids, past_key_values=cache).logits
        return model(ids).logits

    with pytest.raises(probekit.UsageError, match="keeps no keys and values"):
        memory_of(deaf, IDS[:, :2], "Deaf")


def test_keys_and_values_of_different_width_share_what_they_can() -> None:
    memory = Memory((Slot(2, 3, 5), None, Slot(1, 4, 2)))
    assert memory.size == 2 * 5 + 4
    vectors = torch.arange(14.0)[None]
    cache = memory.cache(vectors)
    assert cache.layers[0].keys[0, :, 0].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert cache.layers[0].values[0, :, 0].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert cache.layers[2].keys[0, 0, 0].tolist() == [10, 11, 12, 13]
    assert cache.layers[2].values[0, 0, 0].tolist() == [10, 11]


def test_a_t5_without_its_encoder_is_the_language_model_that_its_decoder_is() -> None:
    from probekit.testing import tiny_subject

    model, tokenizer = t5("t5:layers=2,width=16,heads=2", tiny_subject(), seed=0)
    assert tokenizer is None
    model = model.eval()
    made = T5Decoder(model, model.decoder.embed_tokens, 4, "memory")
    ids = torch.tensor([[5, 6, 7]])
    # Cross-attention to nothing: its output projections are zero.
    with torch.no_grad():
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.o.weight.zero_()
        states = torch.zeros(1, 1, 16)
        expected = model(encoder_outputs=(states,), decoder_input_ids=ids).logits
        assert torch.allclose(made(ids), expected, atol=1e-5)
        assert not torch.allclose(made(ids, torch.ones(1, 4)), made(ids, -torch.ones(1, 4)))


@pytest.mark.parametrize("text", ["layers=0", "depth=2", "width=", "layers=2,width=x", "width=10,heads=3", "heads=1e9"])
def test_sizes_of_a_t5_that_cannot_be_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(probekit.UsageError, match=r"T5.*(expected|divides)"):
        sizes_of(text)


def test_the_lstm_sees_only_what_stands_before() -> None:
    torch.manual_seed(0)
    model, ids = Lstm(20, 8), IDS.clone()
    before = model(ids)
    ids[0, 3] = 9
    assert torch.equal(model(ids)[:, :3], before[:, :3])
    assert not torch.equal(model(ids)[:, 3:], before[:, 3:])
