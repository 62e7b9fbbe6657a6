"""`probekit runs`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path

import click

from probekit.errors import one_line
from probekit.runs.index import TEXT, Index, index_runs, write_index, write_summary

# In fewer columns a table would be a few words wide; there each run is a paragraph.
WIDE = 140
LINES_OF_TEXT = 3
WHOLE = ("kind", "status", "begun", "took")
INDENT = "    "
COLOURS = {"done": "green", "failed": "red", "damaged": "red"}


@click.command("runs")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--cells", is_flag=True, help="List the runs of studies too.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write an index page, with a link to each report, to this HTML file in FOLDER or above it.",
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path),
    help="Write the listing and the summary of each report to this Markdown file.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
def command(folder: Path | None, cells: bool, output: Path | None, summary: Path | None, as_json: bool) -> None:
    """List what was run below FOLDER, the newest first: runs, studies, comparisons and recordings.

    Without FOLDER it is probekit-runs/, where `probekit run` makes its runs.
    """
    index = index_runs(folder, cells)
    page = None if output is None else write_index(index, output)
    if summary is not None:
        write_summary(index, summary)
    if as_json:
        document = {**index.document(), "page": None if page is None else str(page)}
        click.echo(json.dumps(document, indent=1, allow_nan=False))
        return
    show(index, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    if page is not None:
        click.echo(f"Page: {page}")
    if summary is not None:
        click.echo(f"Summary: {summary}")


def show(index: Index, width: int | None) -> None:
    """Print a listing for a terminal of this width; None for a file or a pipe, where no line is folded."""
    entries = [index.texts(entry) for entry in index.entries]
    if width is not None and width >= WIDE and entries:
        _show_table(entries, width)
    else:
        for entry in entries:
            _show_paragraph(entry, width)
    for sentence in index.unreadable:
        click.echo(one_line(sentence), err=True)
    click.echo(index.summary)


def _show_table(entries: list[dict[str, str]], width: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in entries[0]:
        if column == TEXT:
            table.add_column(column, overflow="fold", ratio=1)
        else:
            table.add_column(column, overflow="fold", no_wrap=column in WHOLE, max_width=width // 6)
    for entry in entries:
        cut = textwrap.shorten(entry[TEXT], LINES_OF_TEXT * width // 3, placeholder=" …")
        texts = {column: Text(text) for column, text in {**entry, TEXT: cut}.items()}
        texts["name"].stylize("bold")
        texts["status"].stylize(COLOURS.get(entry["status"], "yellow"))
        table.add_row(*texts.values())
    Console(width=width).print(table)


def _show_paragraph(entry: dict[str, str], width: int | None) -> None:
    """The name, then what is known of it."""
    click.echo(click.style(entry["name"], bold=True))
    status = click.style(entry["status"], fg=COLOURS.get(entry["status"], "yellow"))
    facts = [entry["kind"], status, *(entry[column] for column in ("begun", "took", "model", "analyses"))]
    for line in filter(None, (", ".join(filter(None, facts)), entry[TEXT])):
        click.echo(INDENT + line if width is None else _folded(line, max(width, 40)))


def _folded(text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False)
