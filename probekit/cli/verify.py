"""`probekit verify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from probekit.errors import AnalysisError, one_line
from probekit.runs.verify import Verified, verify


@click.command("verify")
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--recompute",
    is_flag=True,
    help="Also compute every figure of the report again from the saved tensors, and draw every page again.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
def command(path: Path, recompute: bool, as_json: bool) -> None:
    """Check that RUN is whole: every file there, with the hash and of the schema that it was written with.

    RUN may be a run directory, a recording, or the folder of a study. Nothing is written, and no model is loaded. What
    is wrong is said, and the exit code is 1.
    """
    found = verify(path, recompute=recompute)
    if as_json:
        click.echo(json.dumps(found.document(), indent=1, allow_nan=False))
    else:
        for line in _lines(found):
            click.echo(one_line(line))
    if not found.whole:
        count = sum(1 for _ in _problems(found))
        raise AnalysisError(f"'{path}' is not whole: {'1 problem' if count == 1 else f'{count} problems'}.")


def _lines(found: Verified, name: str = "") -> Iterator[str]:
    """What was found, the problems last."""
    prefix = f"{name}: " if name else ""
    for part, each in found.parts.items():
        yield from _lines(each, part)
    for analysis, again in found.recomputed.items():
        yield f"{prefix}{analysis}: {again.equal} figures computed again, {len(again.different)} of them another."
    for note in found.notes:
        yield f"{prefix}note: {note}"
    for problem in found.problems:
        yield f"{prefix}problem: {problem}"
    if found.whole and found.digest:
        yield f"{prefix}whole: {found.files} files, digest {found.digest}"
    elif found.whole:
        count = len(found.parts)
        yield f"{prefix}whole" + (f": {count} run{'' if count == 1 else 's'}" if count else "")


def _problems(found: Verified) -> Iterator[str]:
    yield from found.problems
    for part in found.parts.values():
        yield from _problems(part)
