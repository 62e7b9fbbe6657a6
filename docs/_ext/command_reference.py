"""The directive `command-reference`: every command of the command line and its options, from click's own definitions.

    ```{command-reference}
    ```

Commands of plugins are not among them. A command or an option without a help text is an error.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from docutils.statemachine import StringList
from options_table import OptionRow, table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from probekit.cli import COMMANDS, cli

# A help text that ends in `[default: …]` says a default that click does not know, such as "a new folder".
WRITTEN_DEFAULT = re.compile(r"\s*\[default: (.*?)\]\s*$")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that is called by itself, by its whole name: `run`, `models show`, …"""
    context = click.Context(cli, info_name="probekit")
    for name in sorted(COMMANDS):
        command = cli.get_command(context, name)
        assert command is not None
        yield from _with_subcommands(name, command)


def _with_subcommands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield name, command
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from _with_subcommands(f"{name} {below}", command.commands[below])


def usage(name: str, command: click.Command) -> str:
    """`probekit run [OPTIONS]`, as click writes it."""
    pieces = command.collect_usage_pieces(click.Context(command, info_name=name))
    return " ".join(["probekit", name, *pieces])


def option_rows(command: click.Command) -> list[OptionRow]:
    """The options of a command, in order of definition. Raises ValueError for one without a help text."""
    rows = []
    context = click.Context(command)
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        if not option.help:
            raise ValueError(f"the option {option.opts[-1]} has no help text")
        meaning, default = _default_of(option, context)
        name = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        rows.append(OptionRow(name, _value(option, context), default, meaning))
    return rows


def _value(option: click.Option, context: click.Context) -> str:
    """What an option takes: its choices, or the name of its value with its bounds; nothing for a switch."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " | ".join(f"`{choice}`" for choice in option.type.choices)
    value = f"`{option.make_metavar(context).removesuffix(' RANGE')}`"
    bounds = option.get_help_extra(context).get("range")
    return f"{value}, `{bounds}`" if bounds else value


def _default_of(option: click.Option, context: click.Context) -> tuple[str, str]:
    """The help text without the default that it ends in, and the default."""
    help_text = " ".join((option.help or "").split())
    if written := WRITTEN_DEFAULT.search(help_text):
        return help_text[: written.start()], written[1]
    extra = option.get_help_extra(context)
    return help_text, str(extra.get("default", ""))


class CommandReference(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [self._section(name, command) for name, command in commands()]

    def _section(self, name: str, command: click.Command) -> nodes.section:
        title = f"probekit {name}"
        section = nodes.section("", nodes.title("", "", nodes.literal(text=title)), names=[title])
        # As a link target: [](#probekit-run) on any page.
        self.state.document.note_explicit_target(section)
        if not command.help:
            raise self.error(f"the command {title} has no help text")
        section += nodes.literal_block("", usage(name, command), language="text")
        text = inspect.cleandoc(command.help).splitlines()
        self.state.nested_parse(StringList(text, source=title), self.content_offset, section)
        try:
            rows = option_rows(command)
        except ValueError as error:
            raise self.error(f"{title}: {error}") from error
        if rows:
            section += table(("Option", "Value", "Default", "Meaning"), list(rows))
        return section


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-reference", CommandReference)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
