"""The hooks that a plugin may implement. Pluggy only: importing this imports neither torch nor transformers.

A plugin is a module (or object) under an entry point of the group `probekit`; it marks its implementations with
`probekit.hookimpl`. Implementations are called one by one, so that one that raises does not end the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from probekit.runs import Run

PROJECT = "probekit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def probekit_analyses() -> Sequence[type]:  # type: ignore[empty-body]
    """The analyses that this plugin provides: subclasses of `probekit.Analysis`."""


@hookspec(firstresult=True)
def probekit_load_model(spec: Any) -> tuple[Any, Any] | tuple[Any, Any, Mapping[str, Any]] | None:
    """Load a model that transformers does not know.

    `spec` is the `probekit.ModelSpec`. Return `(model, tokenizer)` or `(model, tokenizer, facts)`, where the tokenizer
    may be None, or None to leave it to the next plugin and at last to transformers. The first result counts. Raise
    `probekit.ModelError` with a sentence if the model is yours but cannot be loaded.

    `facts` is a mapping of JSON types that goes into the run's manifest and the report's provenance: a `revision`,
    where the weights came from. With a `weights_sha256` in it, 64 hexadecimal digits, probekit does not hash the
    weights itself. What probekit measures counts, whatever the facts say of it: `source` (`plugin`), `architecture`,
    `dtype`, `device`, `parameters`, `quantization`, `quantised_share`. Left out is what `probekit models show` reads
    from checkpoints: `has_weights`, `checkpoint_dtype`, `checkpoint_dtype_said_by`.
    """


@hookspec(firstresult=True)
def probekit_anatomy(model: Any) -> Mapping[str, str | int | None] | None:
    """Declare where a model keeps its parts, as module paths.

    Keys: `blocks`, `embedding`, `norm`, `unembedding`; a key that is left out is found by structure, and None says
    that the model has no such part. The key `sequence` is a number: the one length of prompts that the model takes,
    where it does not take any. Return None if this is not a model of yours. The first result counts.
    """


@hookspec
def probekit_run_started(directory: Path, configuration: Mapping[str, Any], resumed: bool) -> None:
    """A run begins, or is `resumed`: its directory exists and holds the resolved configuration, no model is loaded yet.

    `configuration` has the shape of a run's `config.toml` (`probekit.RunConfig`), with every option's value.
    """


@hookspec
def probekit_run_finished(directory: Path, status: str, run: Run) -> None:
    """A run ended: its directory is whole, the report is drawn.

    `status` is `done`, `failed` or `interrupted`; or `abandoned`, where the model or the prompts could not be had (then
    a new run's directory is removed after this), or the run could not be written down. `run` is the `probekit.Run`: its
    results, its failures, its manifest.
    """


@hookspec
def probekit_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Further commands of the `probekit` command line, as click commands. They are found when they are called by
    name.
    """
