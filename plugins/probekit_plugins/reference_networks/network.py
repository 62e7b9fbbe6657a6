"""The networks themselves: two linear layers with a GELU between, behind a token embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from probekit import UsageError


class Layer(nn.Module):
    """`y = φ(x Aᵀ + b)`, with φ GELU or the identity; `[batch, T, d_in]` → `[batch, T, d_out]`.

    It works on each token by itself, or on the T tokens laid end to end as one vector.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module, each_token: bool) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.each_token = each_token

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, sequence, _ = hidden.shape
        # The tokens are laid end to end here rather than before the blocks: so every site is [batch, T, width], and
        # what enters the first block is just what the embedding returned.
        output: torch.Tensor = self.activation(self.linear(hidden if self.each_token else hidden.flatten(1)))
        return output.reshape(batch, sequence, -1)


class ReferenceNetwork(nn.Module):
    """`O(e) = A₂ GELU(A₁ x + b₁) + b₂`, with x the T embeddings of a prompt end to end, or each of them by itself.

    `block.0` is the first linear layer with its GELU, `block.1` the second one. There is no norm and no head: what is
    returned as `logits` is the last activation, not scores of tokens. Source: `FCNet` of Sentence Representation with
    Language Models.
    """

    def __init__(self, embedding: nn.Embedding, blocks: list[Layer], tokens: int | None) -> None:
        """`tokens` is the one number T of tokens that the network takes, or None if it takes any."""
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.tokens = tokens
        described: dict[str, Any] = {
            "num_hidden_layers": len(blocks),
            "hidden_size": embedding.embedding_dim,
            "vocab_size": embedding.num_embeddings,
            "max_position_embeddings": tokens,
        }
        self.config = PretrainedConfig(**described)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, use_cache: bool = False, **_: Any
    ) -> CausalLMOutput:
        """Token ids `[batch, T]` → the last activation. Nothing is masked or cached.

        Raises UsageError for another number of tokens than the network's.
        """
        if self.tokens not in (None, input_ids.shape[-1]):
            raise UsageError(
                f"This network takes sequences of length {self.tokens}; it was given one of length "
                f"{input_ids.shape[-1]}."
            )
        hidden = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return CausalLMOutput(logits=hidden)


def sizes(kind: str, tokens: int | None, width: int) -> tuple[int, int, int]:
    """The sizes n → 4n → 4n of `fc-invertible`, n → 4n → n of the others; n = T·d, or d for each token by itself."""
    entries = (tokens or 1) * width
    return entries, 4 * entries, 4 * entries if kind == "fc-invertible" else entries


def make_blocks(kind: str, tokens: int | None, width: int) -> list[Layer]:
    """The two blocks, in PyTorch's default initialisation, drawn from its default generator, in fp32 on the CPU."""
    entries, inner, outer = sizes(kind, tokens, width)
    each_token = tokens is None
    return [
        Layer(nn.Linear(entries, inner, device="cpu", dtype=torch.float32), nn.GELU(), each_token),
        Layer(nn.Linear(inner, outer, device="cpu", dtype=torch.float32), nn.Identity(), each_token),
    ]


def anatomy(model: ReferenceNetwork) -> Mapping[str, str | int | None]:
    """Where a reference network keeps its parts, and how many tokens it takes."""
    return {
        "blocks": "blocks",
        "embedding": "embedding",
        "norm": None,
        "unembedding": None,
        "sequence": model.tokens,
    }
