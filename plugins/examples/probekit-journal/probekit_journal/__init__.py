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

# When the runs began that this process has not ended yet, on a clock that nobody sets.
_begun: dict[Path, float] = {}


@probekit.hookimpl
def probekit_run_started(directory: Path, configuration: Mapping[str, Any], resumed: bool) -> None:
    """Write down that a run begins, or goes on."""
    from probekit_journal.lines import append, line_of

    directory = directory.absolute()
    _begun[directory] = time.monotonic()
    append(line_of("started", directory, configuration, resumed=resumed))


@probekit.hookimpl
def probekit_run_finished(directory: Path, status: str, run: probekit.Run) -> None:
    """Write down how a run ended: what its analyses found, and the sentence of what failed."""
    from probekit_journal.lines import append, encodable, line_of

    directory = directory.absolute()
    ended: dict[str, Any] = {
        "status": status,
        "seconds": round(time.monotonic() - _begun.pop(directory), 1),
        "findings": {name: encodable(result.finding) for name, result in run.results.items()},
        "failures": {name: encodable(sentence) for name, sentence in run.failures.items()},
    }
    append(line_of("finished", directory, run.manifest["configuration"], **ended))


@probekit.hookimpl
def probekit_commands() -> Sequence[click.Command]:
    """The command `probekit journal`."""
    from probekit_journal.command import journal

    return [journal]
