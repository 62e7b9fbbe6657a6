"""`probekit record`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from probekit.cli.display import display, keeping_output_clean
from probekit.cli.model_options import model_options, spec_values
from probekit.cli.run import ids_of
from probekit.errors import UsageError, size
from probekit.plugins import Plugins
from probekit.runs.recording import STORES, record


class Size(click.ParamType[int]):
    """A number of bytes: `64MiB`, `1GB`, `4096`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from accelerate.utils import convert_file_size_to_int

        try:
            found = int(value) if value.isdecimal() else int(convert_file_size_to_int(value))
        except (ValueError, OverflowError):
            found = 0
        if found < 1:
            self.fail(f"{value!r} is no size; expected for example 64MiB.", param, ctx)
        return found


@click.command("record")
@click.option("--model", help="A folder, a name on the hub, or 'demo', the embedded model.  [default: demo]")
@click.option("--prompts", type=click.Path(path_type=Path), help="Prompts from a file: text, one a line, or JSONL.")
@click.option("--prompt", "texts", multiple=True, help="A prompt; repeatable.")
@click.option("--input-ids", multiple=True, metavar="1,2,3", help="A prompt as token ids; repeatable.")
@click.option(
    "--special-tokens/--no-special-tokens",
    default=True,
    show_default=True,
    help="Let the tokenizer add its special tokens.",
)
@click.option("--sites", default="blocks", show_default=True, help="Where: 'block.3', 'block.0:6:2', 'blocks,norm', …")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the recording.")
@click.option(
    "--store",
    type=click.Choice(STORES),
    default="auto",
    show_default=True,
    help="Precision to keep activations in; 'auto' is the model's own.",
)
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), help="Tokens computed at once, padding counted.  [default: 2048]"
)
@click.option("--shard-size", type=Size(), help="Most bytes of activations in one file.  [default: 128MiB]")
@click.option(
    "--block-plugin", "block_plugins", multiple=True, metavar="NAME", help="An entry point not to load; repeatable."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output, and nothing else there."
)
@model_options
def command(
    model: str | None,
    prompts: Path | None,
    texts: tuple[str, ...],
    input_ids: tuple[str, ...],
    special_tokens: bool,
    sites: str,
    output: Path,
    store: str,
    batch_tokens: int | None,
    shard_size: int | None,
    block_plugins: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Record the activations of a model for any number of prompts, to analyse them later or elsewhere.

    They are written as safetensors shards with an index: `probekit run --activations DIR` reads them, and so does
    anything that reads safetensors. Call it again to go on after an interrupt: finished shards are not computed again.
    """
    if prompts is not None and (texts or input_ids):
        raise UsageError("The prompts come from a file (--prompts) or from the command line (--prompt), not from both.")
    with keeping_output_clean(as_json), display() as listener:
        try:
            recording = record(
                spec_values(model or "demo", given),
                prompts if prompts is not None else texts,
                sites,
                output,
                input_ids=[ids_of(text) for text in input_ids],
                special_tokens=special_tokens,
                store=store,
                batch_tokens=batch_tokens,
                shard_bytes=shard_size,
                manager=Plugins(block_plugins),
                listener=listener,
            )
        except KeyboardInterrupt:
            listener.message("Interrupted; the same command goes on with it.")
            raise
    document = {
        "recording": str(recording.path),
        "sites": recording.sites,
        "prompts": recording.prompt_count,
        "tokens": recording.tokens,
        "shards": len(recording.shards),
        "bytes": recording.bytes,
    }
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    click.echo(
        f"{recording.prompt_count:,} prompts, {recording.tokens:,} tokens at {len(recording.sites)} "
        f"{'site' if len(recording.sites) == 1 else 'sites'}, {size(recording.bytes)} in {len(recording.shards)} "
        f"{'shard' if len(recording.shards) == 1 else 'shards'}"
    )
    click.echo(f"Recording: {recording.path}")
