"""Configs from elsewhere: what a `config.json` may say, checked before a class of transformers is made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from probekit.errors import ModelError
from probekit.models.folders import short

# Most blocks, experts or labels, for each of which something is made: five times those of any model known.
MOST = 100_000

# Counts, for each of which something is made, in configs of transformers; not sizes, such as a `block_size`, nor what
# only looks like a count: the modules that are made are counted besides.
_COUNTED = re.compile(
    r"(num|n)_((hidden|encoder|decoder|attention|key_value|local|routed)_)?(layers?|blocks?|experts?|heads?)|num_labels"
    r"|(encoder|decoder)_layers|depth"
)
# Lengths of tensors; a `model_max_length` or a seed is none, and may be of any size.
_LENGTH = re.compile(r"\w*(size|dim|positions|position_embeddings|embd|inner|ctx)|d_\w+")
# What holds words of its own in place of settings.
_WORDS = ("label2id", "id2label", "task_specific_params", "quantization_config")
# Names of modules that stay as they are, which transformers matches as patterns: some would take years.
_KEPT, _PLAIN, _STARS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"), re.compile(r"[\w.*-]+"), 2
_REPEATS = 3


def check_config(values: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for values that no config has, but that would be acted on: more blocks than can be made, lengths
    beyond 64 bits, a type that is no type of weights, a method of the config in place of a setting, patterns of names.
    """
    waiting: list[Mapping[str, Any]] = [values]
    while waiting:
        part = waiting.pop()
        settings = part is values or "model_type" in part
        for key, value in part.items():
            if settings and (key == "sub_configs" or callable(getattr(PreTrainedConfig, key, None))):
                raise ModelError(f"The config of '{name}' says {short(key)}, which is no setting of a config.")
            if key == "quantization_config" and isinstance(value, Mapping):
                _check_kept(value, name)
            elif isinstance(value, Mapping) and key not in _WORDS:
                waiting.append(value)
            elif type(value) is int and value > MOST and _COUNTED.fullmatch(key):
                raise ModelError(
                    f"The config of '{name}' says {key} = {short(value)}; more than {MOST:,} are taken for a mistake."
                )
            elif type(value) is int and not -(2**63) <= value < 2**63 and _LENGTH.fullmatch(key):
                raise ModelError(
                    f"The config of '{name}' says {key} = {short(value)}; expected a number of at most 64 bits."
                )
    for key in ("dtype", "torch_dtype"):
        said = values.get(key)
        if said is not None and not isinstance(said, dict) and not _is_float(said):
            raise ModelError(
                f"The config of '{name}' says {key} = {short(said)}; expected a type of weights, such as 'float32' or "
                "'bfloat16'."
            )


def _check_kept(quantization: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for patterns of modules' names that may take years to match."""
    for key in _KEPT:
        said = quantization.get(key) or ()
        for entry in said if isinstance(said, list | tuple) else [said]:
            if not isinstance(entry, str) or not _PLAIN.fullmatch(entry) or entry.count("*") > _STARS:
                raise ModelError(
                    f"The config of '{name}' names {short(entry)} in {key}; expected the name of a module, with "
                    f"{_STARS} stars at most."
                )

    patterns = quantization.get("module_quant_configs")
    for pattern in patterns if isinstance(patterns, Mapping) else ():  # real patterns, as Gemma's own quantisation has
        if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > _REPEATS:
            raise ModelError(
                f"The config of '{name}' has the pattern {short(pattern)} in module_quant_configs; expected {_REPEATS} "
                "repetitions at most, none of them of a group, which may take years to match."
            )


def _is_float(said: object) -> bool:
    found = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else None
    return said == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point)
