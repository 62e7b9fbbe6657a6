"""Small models and short runs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit

# Texts of uniformly random tokens, none of them seen twice.
RANDOM: dict[str, Any] = {
    "texts": "random",
    "shortest": None,
    "held_out": 0.02,
    "batch": 64,
    "learning_rate": 2e-3,
    "seeds": 1,
}


def gpt2(vocabulary: int = 32, width: int = 64, layers: int = 3, end: int | None = None) -> probekit.Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            n_positions=48,
            bos_token_id=end,
            eos_token_id=end,
        )
        return probekit.Subject(GPT2LMHeadModel(config).eval())


def llama() -> probekit.Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=48,
            bos_token_id=1,
            eos_token_id=2,
        )
        return probekit.Subject(LlamaForCausalLM(config).eval())


def run(subject: probekit.Subject, context: probekit.Context | None = None, **options: Any) -> probekit.Result:
    kind = probekit.Plugins().analysis("one-word-autoencoder")
    ids = subject.check_ids([1, 2, 3])
    prompts = [probekit.Prompt("", ids, subject.tokens(ids))]
    result: probekit.Result = kind(kind.options_model(**options), context or probekit.Context()).run(subject, prompts)
    return result
