"""`probekit plugins list`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap

import click

from probekit.cli.display import keeping_output_clean
from probekit.plugins import BLOCK_VARIABLE, PluginRecord, Plugins

INDENT = "    "


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_plugins(block: tuple[str, ...], as_json: bool) -> None:
    """Every plugin, what it provides, and why it did not load if it did not."""
    with keeping_output_clean(as_json):
        records = Plugins(block=block).records
    if as_json:
        click.echo(json.dumps([_document(record) for record in records], indent=1))
        return
    for record in records:
        _show(record)


def _document(record: PluginRecord) -> dict[str, object]:
    return {
        "plugin": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "status": record.status,
        "error": record.error,
        "analyses": {analysis.name: analysis.summary() for analysis in record.analyses},
        "hooks": record.hooks,
    }


def _show(record: PluginRecord) -> None:
    """A line with the plugin's name and origin, and below it what it provides, or what to do about it."""
    title = f"{click.style(record.name, bold=True)}  [{f'{record.distribution} {record.version}'.strip()}]"
    if record.status == "failed":
        failed = f"{title}  {click.style('failed', fg='red')}:"
        click.echo(f"{failed}\n{_folded(record.error)}" if sys.stdout.isatty() else f"{failed} {record.error}")
        uninstalled = f", or uninstall it: pip uninstall {record.distribution}" if record.distribution else "."
        click.echo(_folded(f"Leave it out with --block-plugin {record.name}{uninstalled}"))
        return
    if record.status == "blocked":
        click.echo(f"{title}  {click.style('blocked', fg='yellow')}")
        click.echo(_folded(f"It is blocked by --block-plugin or by {BLOCK_VARIABLE}; take it out there to have it."))
        return
    click.echo(title)
    for analysis in record.analyses:
        named = len(record.analyses) == 1 and analysis.name == record.name
        click.echo(_folded(analysis.summary() if named else f"{analysis.name}: {analysis.summary()}"))
    hooks = ", ".join(record.hooks)
    if record.analyses:
        click.echo(click.style(_folded(f"hooks: {hooks}"), dim=True))
    else:
        click.echo(_folded(f"provides no analysis, but the hooks {hooks}" if hooks else "provides no analysis"))


def _folded(text: str) -> str:
    """The text, indented, within the terminal's width; in one line where nobody looks at it."""
    if not sys.stdout.isatty():
        return INDENT + text
    width = max(shutil.get_terminal_size().columns, 40)
    return textwrap.fill(
        text, width, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False
    )
