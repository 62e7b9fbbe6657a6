"""`probekit plugins`."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic_core import to_jsonable_python

from probekit.cli.display import keeping_output_clean
from probekit.plugins import Plugins


@click.group("plugins", invoke_without_command=True)
@click.option("--block-plugin", "block", multiple=True, metavar="NAME", help="An entry point not to load; repeatable.")
@click.pass_context
def command(ctx: click.Context, block: tuple[str, ...]) -> None:
    """List the plugins, or show one with its options."""
    ctx.obj = block
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins, as_json=False)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def list_plugins(block: tuple[str, ...], as_json: bool) -> None:
    """Every plugin, what it provides, and why it did not load if it did not."""
    with keeping_output_clean(as_json):
        records = Plugins(block=block).records
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "plugin": record.name,
                        "distribution": record.distribution,
                        "version": record.version,
                        "status": record.status,
                        "error": record.error,
                        "analyses": {analysis.name: analysis.summary() for analysis in record.analyses},
                        "hooks": record.hooks,
                    }
                    for record in records
                ],
                indent=1,
            )
        )
        return
    for record in records:
        origin = f"{record.distribution} {record.version}".strip()
        if record.status != "loaded":
            click.echo(f"{record.name}  [{origin}]  {record.status}{': ' + record.error if record.error else ''}")
        for analysis in record.analyses:
            click.echo(f"{analysis.name}  [{origin}]\n    {analysis.summary()}")
        if record.status == "loaded" and not record.analyses:
            hooks = f"no analysis, but the hooks {', '.join(record.hooks)}" if record.hooks else "no analysis"
            click.echo(f"{record.name}  [{origin}]\n    provides {hooks}")


@command.command("show")
@click.argument("name")
@click.pass_obj
def show(block: tuple[str, ...], name: str) -> None:
    """What the analysis NAME does, and its options."""
    analysis = Plugins(block=block).analysis(name)
    click.echo(f"{analysis.name}\n")
    click.echo("\n".join("    " + line.strip() for line in (analysis.__doc__ or "").strip().splitlines()))
    click.echo("\nOptions (-o NAME=VALUE):")
    for option, field in analysis.options_model.model_fields.items():
        default = "(required)" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        click.echo(f"  {option} = {default}  ({describe(field.annotation)})")
        if field.description:
            click.echo(f"      {field.description}")


def _shown(value: Any) -> str:
    return json.dumps(to_jsonable_python(value, fallback=str), ensure_ascii=False)


def describe(annotation: Any) -> str:
    """A type as a user reads it: 'l1 | l2', 'whole number', 'list of text'."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return " | ".join(str(part) for part in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(describe(part) for part in arguments)
    if origin in (list, tuple, set):
        return f"list of {describe(arguments[0])}" if arguments else "list"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "unset"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))
