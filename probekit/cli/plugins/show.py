"""`probekit plugins show`."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic_core import to_jsonable_python

from probekit.plugins import Plugins


@click.command("show")
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
