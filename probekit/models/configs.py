"""Configs from elsewhere: what a `config.json` may say, checked before a class of transformers is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from probekit.errors import ModelError, quoted

# Most blocks, experts or labels, for each of which something is made: five times those of any model known.
MOST = 100_000

# Not sizes, such as a `block_size` or a `shared_expert_intermediate_size`.
_COUNTED = re.compile(
    r"(num|n)_(\w+_)?(layers?|blocks?|experts?|labels|heads?|stages|codebooks)(_per_\w+)?|(\w+_)?(layers|blocks|depths?)"
)


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for values that no config has, but that would be acted on: more blocks than can be made, numbers
    beyond 64 bits, a type that is no type of weights, a method of the config in place of a setting.
    """
    waiting: list[Mapping[str, Any]] = [values]
    while waiting:
        for key, value in waiting.pop().items():
            if key == "sub_configs" or callable(getattr(PreTrainedConfig, key, None)):
                raise ModelError(f"The config of '{name}' says {quoted(key)}, which is no setting of a config.")
            if isinstance(value, Mapping):
                waiting.append(value)
            elif type(value) is int and value > MOST and _COUNTED.fullmatch(key):
                raise ModelError(
                    f"The config of '{name}' says {key} = {quoted(value)}; more than {MOST:,} are taken for a mistake."
                )
            elif type(value) is int and not -(2**63) <= value < 2**63:
                raise ModelError(
                    f"The config of '{name}' says {key} = {quoted(value)}; expected a number of at most 64 bits."
                )
    for key in ("dtype", "torch_dtype"):
        said = values.get(key)
        if said is not None and not isinstance(said, dict) and not _is_float(said):
            raise ModelError(
                f"The config of '{name}' says {key} = {quoted(said)}; expected a type of weights, such as 'float32' or "
                "'bfloat16'."
            )


def _is_float(said: object) -> bool:
    found = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else None
    return said == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point)
