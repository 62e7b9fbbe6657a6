"""`probekit report`."""

from __future__ import annotations

from pathlib import Path

import click

from probekit.runs.directory import RunDirectory
from probekit.runs.render import render


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Draw the report of RUN, a run directory, again from what it saved: without the model and without its plugins."""
    directory = RunDirectory.open(run)
    render(directory)
    click.echo(f"Report: {directory.report}")
