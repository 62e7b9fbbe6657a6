"""Depth: the first blocks of a model only, by cutting its config, and whether they are then the blocks of the whole."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from probekit.errors import ModelError, UsageError
from probekit.models.sources import on_meta
from probekit.models.spec import ModelSpec

_PLAIN = (bool, int, float, str, type(None))


def cut(config: Any, spec: ModelSpec) -> Any:
    """A config of the first blocks only, its lists of one entry a block cut as well.

    Raises UsageError if the model has fewer blocks, ModelError if one that is kept would be another than it is in the
    whole model: some share keys and values, or scales, by how many blocks follow (gemma3n). Random weights are those of
    no other model, so there it is not asked.
    """
    depth = spec.depth
    if depth is None:
        return config
    whole = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    full = text.num_hidden_layers
    if depth > full:
        raise UsageError(f"A depth of {depth} blocks was asked for, but the model has {full}.")
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(text, name, value[:depth])
    text.num_hidden_layers = depth
    if spec.weights == "pretrained" and depth < full and (different := _changed(whole, config, spec)):
        raise ModelError(
            f"The first {depth} blocks of '{spec.name}' alone are not those of the whole model: {different} differs. "
            "Leave --depth out; what is past the site is not computed anyway."
        )
    return config


def _changed(whole: Any, first: Any, spec: ModelSpec) -> str:
    """The first part inside a numbered block that is another in the model of fewer blocks; none in most."""
    built = [dict(on_meta(config, spec).named_modules()) for config in (whole, first)]
    path: str
    for path, module in built[1].items():
        if re.search(r"\.\d+(\.|$)", path):
            same = built[0].get(path)
            if same is None or type(same) is not type(module):
                return path
            if different := _difference(same, module):
                return f"{path}.{different}"
    return ""


def _difference(one: nn.Module, other: nn.Module) -> str:
    """The name of a plain attribute, or of a weight's shape, that two modules do not share."""
    for name in sorted(vars(one).keys() | vars(other).keys()):
        values = [vars(module).get(name) for module in (one, other)]
        if all(isinstance(value, _PLAIN) for value in values) and values[0] != values[1]:
            return str(name)
    for name, weight in other.named_parameters(recurse=False):
        same = getattr(one, name, None)
        if same is None or same.shape != weight.shape:
            return name
    return ""
