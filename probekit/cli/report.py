"""`probekit report`."""

from __future__ import annotations

from pathlib import Path

import click

from probekit.errors import UsageError, one_line
from probekit.runs.directory import RunDirectory
from probekit.runs.figures import FORMATS, save_figures
from probekit.runs.hashes import drawn_again
from probekit.runs.render import render


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--figures",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the charts into this folder instead, as files for a paper, with their data and captions. RUN may be a "
    "study's folder too.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    help="With --figures: write only this format; may be given several times.  [default: all]",
)
def command(run: Path, folder: Path | None, formats: tuple[str, ...]) -> None:
    """Draw the report of RUN, a run directory, again from what it saved: without the model and without its plugins."""
    if folder is not None:
        for figure in save_figures(run, folder, formats or FORMATS):
            click.echo(one_line(f"{figure.name}: {figure.caption}" if figure.caption else figure.name))
        click.echo(f"Figures: {folder}")
        return
    if formats:
        raise UsageError("--format says how figures are saved; give --figures DIR with it, or leave it out.")
    with RunDirectory.open_to_write(run) as directory:
        render(directory)
        drawn_again(directory)
    click.echo(f"Report: {directory.report}")
