"""The command line that makes a run again."""

from __future__ import annotations

import json
import shlex
from typing import Any

from probekit.models.spec import ModelSpec
from probekit.runs.config import Resolved, RunConfig


def command_line(resolved: Resolved) -> str:
    """`probekit run …` with every value that is not its default, quoted for a POSIX shell."""
    config = resolved.config
    words = ["probekit", "run", "--model", config.model.name]
    for name, field in ModelSpec.model_fields.items():
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
            words += ["-o", f"{prefix}{key}={_plain(value)}"]
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


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
