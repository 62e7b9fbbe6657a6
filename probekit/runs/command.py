"""The command line that makes a run again, and how an option's value is written there."""

from __future__ import annotations

import json
import shlex
import tomllib
from typing import Any

from probekit.models.spec import ModelSpec
from probekit.runs.config import Resolved, RunConfig

# With more prompts than these a command is no longer one to read: the run's own configuration has them.
PROMPTS_SAID = 50


def command_line(resolved: Resolved) -> str:
    """`probekit run …` with every value that is not its default, quoted for a POSIX shell."""
    config = resolved.config
    if len(config.prompts) + len(config.input_ids) > PROMPTS_SAID:
        return "probekit run --config config.toml  # in the run's folder: there are too many prompts to name here"
    if config.activations is not None:
        words = ["probekit", "run", "--activations", config.activations]
    else:
        words = ["probekit", "run", "--model", config.model.name]
    for name, field in ModelSpec.model_fields.items() if config.activations is None else ():
        value = getattr(config.model, name)
        if name == "name" or value == field.default:
            continue
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, _plain(value)]
    for plugin in config.plugins:
        words += ["--plugin", plugin]
    for analysis, chosen in config.options.items():
        prefix = f"{analysis}." if len(config.plugins) > 1 else ""
        for key, value in chosen.items():
            if value is not None:  # which TOML cannot say
                words += ["-o", f"{prefix}{key}={option_text(value)}"]
    for prompt in config.prompts:
        words += ["--prompt", prompt]
    for ids in config.input_ids:
        words += ["--input-ids", ",".join(map(str, ids))]
    if not config.special_tokens:
        words.append("--no-special-tokens")
    if config.seed != RunConfig.model_fields["seed"].default:
        words += ["--seed", str(config.seed)]
    for name in config.block_plugins:
        words += ["--block-plugin", name]
    return shlex.join(words)


def option_value(text: str) -> Any:
    """A value in TOML (`50`, `true`, `[1, 2]`, `"a b"`), else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # not only tomllib's own: a number of 5000 digits is Python's
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def option_text(value: Any) -> str:
    """The text that `option_value` reads as this value: a text itself unless it looks like another value."""
    return value if isinstance(value, str) and option_value(value) == value else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, str):  # a TOML string has JSON's escapes, but takes no delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(part)}" for key, part in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
