"""Generation: the model's own continuation of token ids, by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList

from probekit.errors import UsageError, nearest
from probekit.models.passes import neutral_token


def generate(
    model: nn.Module, input_ids: torch.Tensor, seed: int, processors: Sequence[Any], settings: dict[str, Any]
) -> torch.Tensor:
    """`[batch, sequence]` → `[batch, sequence + new]`; the caller's random state is given back.

    Raises UsageError if the model cannot generate, or if `settings` are not transformers' own.
    """
    if not getattr(model, "can_generate", lambda: False)():
        raise UsageError(f"{type(model).__name__} does not generate text; give one that does, such as a causal LM.")
    generator: Any = model
    known = GenerationConfig().to_dict()
    if unknown := sorted(set(settings) - set(known)):
        raise UsageError(
            f"'{unknown[0]}' is no setting of generation; the settings are those of transformers' GenerationConfig."
            f"{nearest(unknown[0], known)}"
        )
    # What follows the end of a row that ended before others; many models name no padding of their own.
    settings = {"pad_token_id": neutral_token(model), **settings}

    def generated(**more: Any) -> torch.Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            found: torch.Tensor = generator.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=GenerationConfig(**{**settings, **more}),
                logits_processor=LogitsProcessorList(processors),
            )
        return found

    try:
        try:
            return generated()
        except (
            AttributeError,
            IndexError,
        ):  # some decoders have no place in the cache that transformers makes for them
            return generated(use_cache=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"These settings of generation do not work: {' '.join(str(error).split())}") from None
