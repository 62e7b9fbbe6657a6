"""`probekit compare`, and what `probekit run --compare-random` prints."""

from __future__ import annotations

import json
from pathlib import Path

import click

from probekit.errors import one_line
from probekit.runs.comparison import compare


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="HTML file to make.  [default: a new comparison.html in the current folder]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
def command(runs: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Compare runs, two run directories or more, on one page: the settings that differ, metrics with their differences
    to the first run, and curves in one chart.

    Drawn from what the runs saved, without their models and plugins.
    """
    comparison = compare(runs, output)
    if as_json:
        click.echo(json.dumps(comparison.document(), indent=1, allow_nan=False))
        return
    for name in comparison.analyses:
        for side in comparison.sides:
            for finding in side.pages[name].findings:
                click.echo(one_line(f"{name}, {side.label}: {finding}"))
    click.echo(f"Comparison: {comparison.path}")
