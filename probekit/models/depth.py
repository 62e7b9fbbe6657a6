"""Depth: the first blocks of a model only, by cutting its config, and whether they are then the blocks of the whole."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn
from transformers.initialization import no_init_weights

from probekit.errors import ModelError, UsageError
from probekit.models.failures import first_words
from probekit.models.sources import on_meta
from probekit.models.spec import ModelSpec

# Where a config has several of them, `num_hidden_layers` is the encoder's.
_COUNTS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")

_PLAIN = (bool, int, float, str, type(None))


def cut(config: Any, spec: ModelSpec) -> Any:
    """A config of the first blocks only, its lists of one entry a block cut as well.

    Raises UsageError if the model has fewer blocks; ModelError if it cannot be cut, or if a block that is kept would be
    another than it is in the whole model: some share keys and values, or scale, by how many blocks follow (gemma3n).
    Random weights are those of no other model, so there the latter is not asked.
    """
    depth = spec.depth
    if depth is None:
        return config
    whole = copy.deepcopy(config)
    text = _text_part(config)
    field = next((name for name in _COUNTS if type(getattr(text, name, None)) is int), None)
    if field is None:
        raise _refusal(spec, "its config does not say how many there are")
    full = getattr(text, field)
    if depth > full:
        raise UsageError(f"A depth of {depth} blocks was asked for, but the model has {full}.")
    if depth < full:
        for name, value in list(vars(text).items()):
            if isinstance(value, list | tuple) and len(value) == full and "token" not in name:
                setattr(text, name, value[:depth])
        setattr(text, field, depth)
        _check(whole, config, field, full, spec)
    return config


def _text_part(config: Any) -> Any:
    """The part of a config that is the text decoder's. Of an encoder with a decoder, transformers gives a copy."""
    text = config.get_text_config(decoder=True)
    return config if type(text) is type(config) else text


def _check(whole: Any, first: Any, field: str, full: int, spec: ModelSpec) -> None:
    """Build both without weights, from copies, since transformers writes into a config, and compare them."""
    with no_init_weights():
        model = on_meta(copy.deepcopy(whole), spec)
    try:
        with no_init_weights():
            shorter = on_meta(copy.deepcopy(first), spec)
    except Exception as error:  # a model's own code raises what it likes
        raise _refusal(spec, f"so few do not make a model ({first_words(error).rstrip('.')})") from error
    lengths = [
        {path: len(part) for path, part in each.named_modules() if isinstance(part, nn.ModuleList)}
        for each in (model, shorter)
    ]
    if not any(length == full and lengths[1].get(path) == spec.depth for path, length in lengths[0].items()):
        raise _refusal(spec, f"its config's {field} alone does not set their number")
    if spec.weights == "pretrained" and (different := _difference(model, shorter)):
        raise _refusal(spec, f"alone they are not those of the whole model ({different} differs)")


def _refusal(spec: ModelSpec, reason: str) -> ModelError:
    return ModelError(
        f"'{spec.name}' cannot be cut to its first {spec.depth} blocks: {reason}. "
        "Leave --depth out; what is past the site is not computed anyway."
    )


def _difference(model: nn.Module, shorter: nn.Module) -> str:
    """The first part that the shorter model has another of: a weight's shape, or anything plain inside a block."""
    path: str
    shapes = {path: weight.shape for path, weight in model.named_parameters()}
    for path, weight in shorter.named_parameters():
        if shapes.get(path) != weight.shape:
            return path
    modules = dict(model.named_modules())
    for path, module in shorter.named_modules():
        if re.search(r"\.\d+(\.|$)", path):  # outside of numbered blocks, something may well count them
            if path not in modules:
                return path
            one, other = _described(modules[path]), _described(module)
            for name in sorted(one.keys() | other.keys()):
                if not _agree(one.get(name), other.get(name)):
                    return f"{path}.{name}"
    return ""


def _agree(one: Any, other: Any) -> bool:
    """Whether two attributes are the same, or one a beginning of the other: a list with one entry for each block."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return all(map(_agree, one, other))  # up to the end of the shorter
    return bool(one == other)


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))


def _described(module: nn.Module) -> dict[str, Any]:
    """What tells a module from another in its place: its class, its plain attributes and the classes of its parts."""
    plain = {name: value for name, value in vars(module).items() if _is_plain(value)}
    return {**plain, **{name: type(part) for name, part in module.named_children()}, "class": type(module)}
