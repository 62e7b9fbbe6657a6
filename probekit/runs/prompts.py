"""Prompts of a run: read from files, encoded by the subject's tokenizer, checked before anything is computed. No
torch at import.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Prompt
from probekit.errors import UsageError

if TYPE_CHECKING:
    from probekit.runs.config import RunConfig
    from probekit.subject import Subject


def read_prompts(path: Path) -> dict[str, list[Any]]:
    """`{"prompts": […], "input_ids": […]}` from a file, in the order of the file. Raises UsageError as `prompts_in`."""
    found: dict[str, list[Any]] = {"prompts": [], "input_ids": []}
    for prompt in prompts_in(path):
        found["prompts" if isinstance(prompt, str) else "input_ids"].append(prompt)
    return found


def prompts_in(path: Path) -> Iterator[str | list[int]]:
    """The prompts of a file, line by line.

    A `.jsonl` file has one JSON value a line: a string, `{"prompt": …}`, `{"text": …}`, `{"input_ids": […]}` or a
    list of ids. Any other file is text, one prompt a line; empty lines are skipped. Raises UsageError with the line
    at fault, or if there is no prompt.
    """
    count = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:  # U+2028 and the like part no prompts
            for number, line in enumerate(lines, 1):
                if line.strip():
                    count += 1
                    yield _prompt(line.removesuffix("\n"), number, path)
    except OSError as error:
        raise UsageError(f"The prompts file '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The prompts file '{path}' is not UTF-8 text.") from None
    except ValueError as error:  # of the path
        raise UsageError(f"The prompts file {str(path)!r} cannot be read: {error}.") from None
    if count == 0:
        raise UsageError(f"The prompts file '{path}' has no prompts; expected one a line.")


def _prompt(line: str, number: int, path: Path) -> str | list[int]:
    if path.suffix != ".jsonl":
        return line
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"Line {number} of '{path}' is not JSON; expected one JSON value a line.") from None
    if isinstance(value, dict):
        key = next((key for key in ("input_ids", "prompt", "text") if key in value), "")
        value = value.get(key)
        if isinstance(value, str) == (key == "input_ids"):  # a text is no ids, nor the other way round
            value = None
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(index) is int for index in value)):
        return value
    raise UsageError(
        f'Line {number} of \'{path}\' is no prompt; expected a string, {{"prompt": …}} or {{"input_ids": […]}}.'
    )


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
