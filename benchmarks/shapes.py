"""The shapes that are compared: GPT-2 of 124 million parameters, a Llama and a Mixture of Experts of about as many.

Weights are random; speed does not depend on their values, but for which experts a token goes to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import GPT2Config, LlamaConfig, MixtralConfig, PretrainedConfig

import probekit
from benchmarks.peers.peer import Model


@dataclass(frozen=True)
class Shape:
    """A config of transformers, and a smaller one of the same family that shows whether everything works."""

    name: str
    described: str
    maker: type[PretrainedConfig]
    of: str
    config: dict[str, Any]
    small: dict[str, Any]
    body: str
    blocks: str
    embedding: str

    @contextmanager
    def model(self, quick: bool = False, **options: Any) -> Iterator[Model]:
        """The model, with random weights, loaded with these options; its folder is there while this is open."""
        with tempfile.TemporaryDirectory(prefix="shape-") as folder:
            self.maker(**(self.small if quick else self.config), architectures=[self.of]).save_pretrained(folder)
            subject = probekit.load(folder, weights="random", weights_seed=0, **options)
            yield Model(subject, folder, self.body, self.blocks, self.embedding)


ROTARY = {"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 1024}
TINY = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64}

GPT2 = Shape(
    "GPT-2",
    "124 million parameters: 12 blocks, d = 768",
    GPT2Config,
    "GPT2LMHeadModel",
    {"n_ctx": 1024},  # as the published config has it
    {
        "n_ctx": 64,
        "n_layer": 3,
        "n_embd": 48,
        "n_head": 4,
        "vocab_size": 128,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "transformer",
    "h",
    "wte",
)
LLAMA = Shape(
    "Llama",
    "125 million parameters: 12 blocks, d = 768, 12 heads on 4 of keys and values, 2048 wide within",
    LlamaConfig,
    "LlamaForCausalLM",
    {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, **ROTARY},
    TINY,
    "model",
    "layers",
    "embed_tokens",
)
MOE = Shape(
    "Mixture of Experts",
    "140 million parameters, of Mixtral's kind: 8 blocks, d = 512, 2 of 8 experts for each token, 1024 wide within",
    MixtralConfig,
    "MixtralForCausalLM",
    {
        **ROTARY,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_local_experts": 8,
    },
    {**TINY, "num_local_experts": 4},
    "model",
    "layers",
    "embed_tokens",
)
SHAPES = (GPT2, LLAMA, MOE)
