"""`probekit models`."""

from __future__ import annotations

import json
from typing import Any

import click

from probekit.cli.model_options import model_options, spec_values
from probekit.models.spec import parse_spec
from probekit.plugins import Plugins


@click.group("models")
def command() -> None:
    """Show where a model keeps its parts."""


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@model_options
def show(name: str, as_json: bool, **given: Any) -> None:
    """Load the model NAME and print its anatomy: embedding, decoder blocks, final norm, unembedding, and its sites."""
    spec = parse_spec(**spec_values(name, given))
    from probekit.subject import load_spec

    subject = load_spec(spec, Plugins())
    anatomy = subject.anatomy

    def part(path: str | None, module: Any) -> str:
        return "none" if module is None else f"{path}  ({type(module).__name__})"

    facts: dict[str, Any] = {
        "model": name,
        **subject.facts,
        "embedding": f"{part(anatomy.embedding_path, anatomy.embedding)}, {subject.vocabulary} × {subject.width}",
        "blocks": f"{anatomy.blocks_path}  ({len(anatomy.blocks)} × {type(anatomy.blocks[0]).__name__})",
        "norm": part(anatomy.norm_path, anatomy.norm),
        "unembedding": part(anatomy.unembedding_path, anatomy.unembedding),
        "context": subject.context,
        "tokenizer": subject.facts.get("tokenizer") or type(subject.tokenizer).__name__,
        "blocks read the token ids": subject.conditioned_on_ids,
        "sites": subject.sites(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        shown = (
            ", ".join(value)
            if isinstance(value, list)
            else "yes"
            if value is True
            else "no"
            if value is False
            else value
        )
        click.echo(f"{key:<{width}}  {shown}")
