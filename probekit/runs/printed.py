"""Standard output for a plugin: its first lines are said, the others counted."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import Any

# So many lines of what an analysis prints are kept.
LINES_KEPT = 20
# And so many characters of each.
LINE_LENGTH = 2000


class Printed(io.TextIOBase):
    """Standard output for a plugin: its first lines are said, the others counted.

    Of a line that is written over, as progress is, the last version counts. What goes past Python goes to standard
    error.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._begun = ""
        self.count = 0
        self.buffer = _Bytes(self)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def close(self) -> None:
        """It goes on: others print after one that closes it."""

    def reconfigure(self, **_: object) -> None:
        """There is nothing to configure."""

    def end_line(self) -> None:
        """What stands without a newline is a line as well."""
        self.buffer.end()
        if self._begun:
            self.write("\n")

    def write(self, text: str) -> int:
        first, *others = text.split("\n")
        lines = [self._begun + first, *others]
        self._begun = _last_version(lines.pop())
        for line in lines:
            self.count += 1
            if self.count <= LINES_KEPT:
                self._say(f"{self._name} printed: {_last_version(line).rstrip(chr(13))}")
            elif self.count == LINES_KEPT + 1:
                self._say(f"{self._name} goes on printing; its further lines are not kept.")
        return len(text)


def _last_version(line: str) -> str:
    """What a line shows, cut to its length; a return at its end is kept, since it acts on what follows only."""
    shown = line.rstrip("\r")
    return shown.rpartition("\r")[2][:LINE_LENGTH] + ("\r" if len(shown) < len(line) else "")


class _Bytes(io.BufferedIOBase):
    """What is written in bytes, as text."""

    def __init__(self, text: Printed) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder(text.encoding)(text.errors)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def close(self) -> None:
        """As of the text."""

    def write(self, data: Any) -> int:
        given = bytes(data)
        self._text.write(self._decoder.decode(given))
        return len(given)

    def end(self) -> None:
        """A character that was begun only is written as one that cannot be read."""
        self._text.write(self._decoder.decode(b"", final=True))
