"""`probekit models`."""

from __future__ import annotations

import json
from typing import Any

import click

from probekit.cli.display import keeping_output_clean
from probekit.cli.model_options import model_options, spec_values
from probekit.models.spec import parse_spec
from probekit.plugins import Plugins


@click.group("models")
def command() -> None:
    """Show what a model is and what it takes."""


@command.command("show")
@click.argument("name")
@click.option("--load", is_flag=True, help="Load the weights too, and check what only they can tell.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@model_options
def show(name: str, load: bool, as_json: bool, **given: Any) -> None:
    """Show what the model NAME is: its parts, its sites and their shapes, its size, its memory, what is supported.

    Its weights are not loaded: everything is told from its config.
    """
    spec = parse_spec(**spec_values(name, given))
    from probekit.description import as_text, describe

    with keeping_output_clean(as_json):
        facts = describe(spec, Plugins(), load)
    click.echo(json.dumps(facts, indent=1) if as_json else as_text(facts))
