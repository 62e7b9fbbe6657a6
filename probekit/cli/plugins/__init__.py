"""`probekit plugins`: what is installed, what it takes, whether it keeps its promises, and how to begin one."""

from __future__ import annotations

import click

from probekit.cli.plugins.check import check
from probekit.cli.plugins.listing import list_plugins
from probekit.cli.plugins.new import new
from probekit.cli.plugins.show import show


@click.group("plugins", invoke_without_command=True)
@click.option("--block-plugin", "block", multiple=True, metavar="NAME", help="An entry point not to load; repeatable.")
@click.pass_context
def command(ctx: click.Context, block: tuple[str, ...]) -> None:
    """List the plugins, show one with its options, check one, or begin one of your own."""
    ctx.obj = block
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins, as_json=False)


for subcommand in (check, list_plugins, new, show):
    command.add_command(subcommand)
