"""Files of texts: one on each line, or as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from probekit import UsageError


def lines(name: str) -> list[str]:
    """The texts of a UTF-8 file: its lines that are not empty, as those of a file of prompts, or the `text` of each of
    its JSON lines.

    Raises UsageError with one sentence if the file cannot be read.
    """
    path = Path(name)
    try:
        with path.open(encoding="utf-8-sig") as file:  # U+2028 and the like part no texts
            found = [(number, line.removesuffix("\n")) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise UsageError(f"The texts '{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"The texts '{path}' are not UTF-8.") from None
    except ValueError as error:  # of the path
        raise UsageError(f"The texts {str(path)!r} cannot be read: {error}.") from None
    if path.suffix not in (".jsonl", ".ndjson"):
        return [line for _, line in found]
    return [_text(line, number, path) for number, line in found]


def _text(line: str, number: int, path: Path) -> str:
    """The `text` of a JSON line."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        document = None
    text = document.get("text") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"Line {number} of '{path}' is no JSON object with a `text`.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"Line {number} of '{path}' has half of a surrogate pair, which is no character.") from None
    return text
