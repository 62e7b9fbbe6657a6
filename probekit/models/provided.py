"""Models that a plugin's own loader makes: what it may return, and which of its facts count."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from probekit.errors import PluginError
from probekit.models.spec import ModelSpec

if TYPE_CHECKING:
    from probekit.plugins import Plugins

LOADER = "probekit_load_model"

# What a loader's facts do not decide: what is told of the model itself, and what a skeleton tells of a checkpoint.
TOLD_HERE = frozenset({
    "source", "architecture", "dtype", "device", "parameters", "quantization", "quantised_share",
    "has_weights", "checkpoint_dtype", "checkpoint_dtype_said_by",
})  # fmt: skip


def ask(spec: ModelSpec, plugins: Plugins) -> tuple[nn.Module, Any, dict[str, Any]] | None:
    """What the first loader returns that takes the spec for its own: model, tokenizer, and its facts in JSON types.

    Raises what the loader raises, and PluginError if it returns something else than the hook asks for.
    """
    answer = plugins.answer(LOADER, spec=spec)
    if answer is None:
        return None
    plugin, returned = answer
    try:
        return _checked(returned)
    except ValueError as error:
        raise PluginError(
            f"The plugin '{plugin}' failed in {LOADER} (--block-plugin {plugin} leaves it out): it returned "
            f"{' '.join(str(error).split())}"
        ) from None


def _checked(returned: Any) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Model, tokenizer and facts. Raises ValueError, which says what was returned and what was expected."""
    whole = "(model, tokenizer), (model, tokenizer, facts) or None."
    if not isinstance(returned, tuple):
        raise ValueError(f"a {type(returned).__name__}; expected {whole}")
    if len(returned) not in (2, 3):
        raise ValueError(f"a tuple of {len(returned)}; expected {whole}")
    model, tokenizer, facts = returned if len(returned) == 3 else (*returned, {})
    if not isinstance(model, nn.Module):
        raise ValueError(f"a {type(model).__name__} as the model; expected a torch.nn.Module.")
    if next(model.parameters(), None) is None:
        raise ValueError(f"a {type(model).__name__} without parameters as the model; expected one that has weights.")
    if isinstance(tokenizer, str | Mapping):  # its name, or the facts in its place
        raise ValueError(f"a {type(tokenizer).__name__} as the tokenizer; expected a tokenizer or None.")
    if not isinstance(facts, Mapping):
        raise ValueError(f"a {type(facts).__name__} as the facts; expected a mapping from names to JSON types.")
    plain = {name: _plain(name, fact) for name, fact in facts.items() if name not in TOLD_HERE}
    if not re.fullmatch("[0-9a-f]{64}", str(plain.get("weights_sha256", "0" * 64))):
        raise ValueError("a fact 'weights_sha256' that is no SHA-256; expected 64 hexadecimal digits, or leave it out.")
    return model, tokenizer, plain


def _plain(name: object, fact: object) -> Any:
    """A fact as it is read back from a manifest. Raises ValueError as `_checked` does."""
    try:
        if not isinstance(name, str):
            raise TypeError(f"its name is a {type(name).__name__}")
        return json.loads(json.dumps(fact, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"a fact {name!r} that is not JSON ({error}); expected text, numbers that are finite, booleans, None, and "
            "lists and dicts of these by name."
        ) from None
