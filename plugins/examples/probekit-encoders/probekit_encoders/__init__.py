"""Text encoders for probekit: `--model encoder:NAME_OR_FOLDER` loads BERT, T5's encoder and the like.

The two model hooks, and nothing else: torch and transformers are imported when a name of ours is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import probekit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "encoder:"

# The models that this plugin has loaded, by identity, and for as long as they live.
_loaded: WeakSet[Any] = WeakSet()


@probekit.hookimpl
def probekit_load_model(spec: probekit.ModelSpec) -> tuple[PreTrainedModel, Any, Mapping[str, Any]] | None:
    """The encoder that `spec` names, its tokenizer, and which weights it has; None for a name without our prefix."""
    if not spec.name.startswith(PREFIX):
        return None

    from probekit_encoders.loading import load_encoder

    model, tokenizer, facts = load_encoder(spec.name.removeprefix(PREFIX), spec)
    _loaded.add(model)
    return model, tokenizer, facts


@probekit.hookimpl
def probekit_anatomy(model: Any) -> Mapping[str, str | None] | None:
    """Where an encoder of ours keeps its parts; None for any other model."""
    if model not in _loaded:
        return None

    from probekit_encoders.anatomy import find_parts

    return find_parts(model)
