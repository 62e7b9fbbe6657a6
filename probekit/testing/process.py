"""The state of the process that an analysis must leave alone."""

from __future__ import annotations

from typing import Any

from probekit.runs.state import put_back, read_state


class GlobalState:
    """What a block changes of the process's state, in `changed`; at the block's end everything is put back."""

    def __init__(self) -> None:
        self.changed: list[str] = []

    def __enter__(self) -> GlobalState:
        self._before = read_state()
        return self

    def __exit__(self, *_: object) -> None:
        self.changed += [f"{name} ({_difference(was, now)})" for name, (was, now) in put_back(self._before).items()]


def _difference(was: Any, now: Any) -> str:
    if isinstance(was, dict):
        return ", ".join(sorted(name for name in {*was, *now} if was.get(name) != now.get(name)))
    return f"{was} before, {now} after"
