"""A journal of runs, for people who make hundreds: what was run, for how long, and what it found.

The hooks that observe runs, and the one that adds a command. Each run appends two lines to a file: one when it begins
and one when it ends, so that a run that was killed is seen too. Neither can harm the run: what a hook raises becomes a
sentence among the run's messages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import probekit

if TYPE_CHECKING:
    import click

# The runs that this process has begun and not ended: when, on a clock that nobody sets, and what they are.
_begun: dict[Path, tuple[float, Mapping[str, Any]]] = {}


@probekit.hookimpl
def probekit_run_started(directory: Path, configuration: Mapping[str, Any]) -> None:
    """Write down that a run begins. Its model may still fail to load: then probekit removes the directory again."""
    from probekit_journal.lines import append, line_of

    directory = directory.absolute()
    _begun[directory] = (time.monotonic(), configuration)
    append(line_of("started", directory, configuration))


@probekit.hookimpl
def probekit_run_finished(directory: Path, status: str) -> None:
    """Write down how a run ended and what its analyses found, or that it ended if that cannot be read."""
    from probekit_journal.lines import append, encodable, line_of

    directory = directory.absolute()
    began, configuration = _begun.pop(directory)
    ended: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    try:
        run = probekit.read_run(directory)
        ended["findings"] = {name: encodable(result.finding) for name, result in run.results.items()}
        ended["failures"] = {name: encodable(sentence) for name, sentence in run.failures.items()}
    finally:
        append(line_of("finished", directory, configuration, **ended))


@probekit.hookimpl
def probekit_commands() -> Sequence[click.Command]:
    """The command `probekit journal`."""
    from probekit_journal.command import journal

    return [journal]
