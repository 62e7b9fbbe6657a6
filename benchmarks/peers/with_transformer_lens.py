"""TransformerLens: its bridge, which its documentation recommends, and `HookedTransformer`, which came before it.

The bridge wraps the modules of transformers (with eager attention, which it needs) and takes embeddings in place of
ids. `HookedTransformer` computes the same by modules of its own, on weights converted without any processing. Both
stop early by `stop_at_layer`; the last block is read where it is followed by the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from transformer_lens import HookedTransformer
from transformer_lens import loading_from_pretrained as loading
from transformer_lens.model_bridge.sources import build_bridge_from_module

from benchmarks.measure import Role
from benchmarks.peers.peer import Capture, Map, Model

RESIDUAL = "blocks.{}.hook_resid_post"


class Bridge:
    """`TransformerBridge` around modules of its own, with the same weights."""

    role: Role = "peer"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self.title = f"TransformerLens {version('transformer-lens')}"
        self._ids, self._depth = input_ids, model.depth
        module = model.own()
        module.set_attn_implementation("eager")
        self._bridge: Any = build_bridge_from_module(
            module, type(module).__name__, hf_config=module.config, model_name="bench"
        )

    def layer_map(self, blocks: int) -> Map:
        if blocks < self._depth:
            return lambda embeddings: self._bridge(embeddings, stop_at_layer=blocks)

        def call(embeddings: torch.Tensor) -> torch.Tensor:
            found: list[torch.Tensor] = []
            hook = (RESIDUAL.format(blocks - 1), lambda value, hook: found.append(value))
            self._bridge.run_with_hooks(embeddings, fwd_hooks=[hook], return_type=None)
            return found[0]

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        return _cached(self._bridge, self._ids, blocks, self._depth)


class Hooked:
    """`HookedTransformer`, weights converted."""

    role: Role = "peer"

    def __init__(self, model: Model, input_ids: torch.Tensor) -> None:
        self.title = f"HookedTransformer {version('transformer-lens')}"
        self._ids, self._depth = input_ids, model.depth
        # What `HookedTransformer.from_pretrained_no_processing` does, which takes no folder.
        config = loading.get_pretrained_model_config(model.folder, device="cpu")
        config.tokenizer_name = None  # there is none in the folder
        weights = loading.get_pretrained_state_dict(model.folder, config, model.module)
        self._hooked: Any = HookedTransformer(config)
        self._hooked.load_and_process_state_dict(
            weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
        self._hooked.eval().requires_grad_(False)

    def layer_map(self, blocks: int) -> Map:
        places = getattr(self._hooked, "pos_embed", None)

        def call(embeddings: torch.Tensor) -> torch.Tensor:
            start = embeddings if places is None else embeddings + places(self._ids)
            # The layer after the last is none, so it stops before the norm and the unembedding.
            found: torch.Tensor = self._hooked(start, start_at_layer=0, stop_at_layer=blocks)
            return found

        return call

    def capture(self, blocks: Sequence[int]) -> Capture:
        return _cached(self._hooked, self._ids, blocks, self._depth)


def _cached(model: Any, ids: torch.Tensor, blocks: Sequence[int], depth: int) -> Capture:
    """`run_with_cache`, which keeps what is named and stops after the deepest."""
    names = [RESIDUAL.format(block) for block in blocks]
    options: dict[str, Any] = {"names_filter": names, "return_cache_object": False}
    stop = max(blocks) + 1
    if stop < depth or isinstance(model, HookedTransformer):
        options["stop_at_layer"] = stop

    def call() -> list[torch.Tensor]:
        with torch.no_grad():
            _, cache = model.run_with_cache(ids, **options)
        return [cache[name] for name in names]

    return call
