"""Prompts of a run: read from files, encoded by the subject's tokenizer, checked before anything is computed. No
torch at import.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Prompt
from probekit.errors import UsageError

if TYPE_CHECKING:
    from probekit.runs.config import RunConfig
    from probekit.subject import Subject


def read_prompts(path: Path) -> dict[str, list[Any]]:
    """`{"prompts": […], "input_ids": […]}` from a file.

    A `.jsonl` file has one JSON value a line: a string, `{"prompt": …}`, `{"text": …}`, `{"input_ids": […]}` or a
    list of ids. Any other file is text, one prompt a line; empty lines are skipped. Raises UsageError with the line
    at fault.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # U+2028 and the like part no prompts
    except OSError as error:
        raise UsageError(f"The prompts file '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The prompts file '{path}' is not UTF-8 text.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"The prompts file '{path}' has no prompts; expected one a line.")
    found: dict[str, list[Any]] = {"prompts": [], "input_ids": []}
    if path.suffix != ".jsonl":
        found["prompts"] = [line for _, line in numbered]
        return found
    for number, line in numbered:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"Line {number} of '{path}' is not JSON; expected one JSON value a line.") from None
        if isinstance(value, dict):
            value = next((value[key] for key in ("input_ids", "prompt", "text") if key in value), None)
        if isinstance(value, str):
            found["prompts"].append(value)
        elif isinstance(value, list) and value and all(type(index) is int for index in value):
            found["input_ids"].append(value)
        else:
            raise UsageError(
                f'Line {number} of \'{path}\' is no prompt; expected a string, {{"prompt": …}} or {{"input_ids": […]}}.'
            )
    return found


def encode_prompts(subject: Subject, config: RunConfig) -> list[Prompt]:
    """The prompts of a run as token ids, texts first. Raises UsageError for one that is empty, too long, or out of
    vocabulary.
    """
    prompts = []
    for text in config.prompts:
        ids = subject.encode(text, config.special_tokens)
        prompts.append(Prompt(text, ids, subject.tokens(ids)))
    for given in config.input_ids:
        ids = subject.check_ids(given, str(given))
        prompts.append(Prompt(subject.text(ids), ids, subject.tokens(ids)))
    return prompts
