"""Decoders: `p(x | z)`, by a copy of the model or a T5's decoder, with z as memory or in the embeddings; and an LSTM.

Memory: `W_M z`, one more position among the keys and values of each block. Embedding: `W_D z`, added to the embedding
of every token. Both maps have no bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probekit_plugins.copies import WithoutDropout
from probekit_plugins.text_vae.memory import memory_of

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache

    from probekit_plugins.text_vae import Injection


class Decoder(WithoutDropout):
    """`logits(ids, z)`: `[n, T]` and `[n, P]` → `[n, T, V]`; without z the language model that it is."""

    def __init__(self, model: nn.Module, embedding: nn.Module, latent: int, injection: Injection | None) -> None:
        """Of a causal LM and its token embedding; `injection` None is one without z. Raises UsageError if no memory can
        be given to the model.
        """
        super().__init__()
        self.model = model
        self._embedding = [embedding]  # not a child of its own: it is the model's
        device = next(model.parameters()).device
        self._memory = None
        if injection in ("memory", "both"):
            ids = torch.zeros(1, 2, dtype=torch.long, device=device)
            self._memory = memory_of(self._call, ids, type(model).__name__)
            self.to_memory = nn.Linear(latent, self._memory.size, bias=False, device=device)
        self._embeds = injection in ("embedding", "both")
        if self._embeds:
            with torch.no_grad():
                width = embedding(torch.zeros(1, 1, dtype=torch.long, device=device)).shape[-1]
            self.to_embedding = nn.Linear(latent, width, bias=False, device=device)

    def forward(self, ids: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """The logits at every position. Padding on the right needs no mask: no position sees what stands behind it."""
        if z is None:
            return self._call(ids, None)
        cache = None if self._memory is None else self._memory.cache(self.to_memory(z))
        if not self._embeds:
            return self._call(ids, cache)
        shift = self.to_embedding(z)[:, None]
        handle = self._embedding[0].register_forward_hook(lambda _module, _inputs, output: output + shift)
        try:
            return self._call(ids, cache)
        finally:
            handle.remove()

    def _call(self, ids: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        model: Any = self.model
        given = {} if cache is None else {"past_key_values": cache}
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, **given).logits
        return logits


class T5Decoder(Decoder):
    """The decoder of a T5, its encoder's states left out: it attends to what it has written, and to the memory."""

    def _call(self, ids: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        model: Any = self.model
        states = model.decoder(input_ids=ids, past_key_values=cache, use_cache=False).last_hidden_state
        if model.config.scale_decoder_outputs:
            states = states * model.config.d_model**-0.5
        logits: torch.Tensor = model.lm_head(states)
        return logits


class Lstm(nn.Module):
    """A language model of one recurrent layer, without z: embedding, LSTM, head, all of one width."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrent = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, ids: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """The logits at every position, `[n, T, V]`."""
        logits: torch.Tensor = self.head(self.recurrent(self.embedding(ids))[0])
        return logits
