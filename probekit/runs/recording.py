"""Recording activations: a model and prompts, in one pass, into a folder that later analyses read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.analysis import Listener
from probekit.analysis.context import Silent
from probekit.errors import UsageError
from probekit.models.spec import parse_spec
from probekit.plugins import Plugins
from probekit.runs.config import check_prompt
from probekit.runs.determinism import deterministic, note, told
from probekit.runs.prompts import prompts_in
from probekit.runs.state import standard
from probekit.runs.versions import versions

if TYPE_CHECKING:
    from probekit.activations import Recording

STORES = ("auto", "float32", "bfloat16", "float16")


@standard()
def record(
    model: str | os.PathLike[str] | Mapping[str, Any] = "demo",
    prompts: str | os.PathLike[str] | Sequence[str] = (),
    sites: str | Sequence[str] = "blocks",
    output: str | os.PathLike[str] = "recording",
    *,
    input_ids: Sequence[Sequence[int]] = (),
    special_tokens: bool = True,
    store: str = "auto",
    batch_tokens: int | None = None,
    shard_bytes: int | None = None,
    manager: Plugins | None = None,
    listener: Listener | None = None,
) -> Recording:
    """Record the activations of a model at some sites for any number of prompts, as `probekit record` does.

    `model` is a name or path, or a mapping of `ModelSpec` fields; `prompts` are texts, or the path of a file with one a
    line (as `--prompts` takes it), which is read line by line. `store` is the dtype to keep activations in: `auto` is
    the model's own, or float32, bfloat16, float16. `batch_tokens` bounds what is computed at once, `shard_bytes` the
    size of one file, which is held in memory.

    What was interrupted or killed is gone on with by the same call, and ends byte for byte the same; at most one shard
    has to be computed again. A call for a finished recording returns it. Raises UsageError or ModelError with one
    sentence, and for prompts before anything is computed.
    """
    from probekit.activations import BATCH_TOKENS, SHARD_BYTES, Storage, write
    from probekit.subject import load_spec

    for name, bound in (("batch_tokens", batch_tokens), ("shard_bytes", shard_bytes)):
        if bound is not None and bound < 1:
            raise UsageError(f"{name} is {bound}; expected at least 1.")
    if store not in STORES:
        raise UsageError(f"Activations cannot be stored as {store!r}; expected one of: {', '.join(STORES)}.")
    storage = Storage(store, shard_bytes or SHARD_BYTES, batch_tokens or BATCH_TOKENS)
    manager = manager or Plugins()
    listener = listener or Silent()
    spec = parse_spec(**(dict(model) if isinstance(model, Mapping) else {"name": os.fspath(model)}))
    file, texts = (Path(prompts), ()) if isinstance(prompts, str | os.PathLike) else (None, prompts)
    if file is not None and _is_pipe(file):
        raise UsageError(f"The prompts '{file}' are a pipe, and prompts are read more than once; write them to a file.")
    given = [_checked(prompt) for prompt in chain(texts, input_ids)]
    if file is None and not given:
        raise UsageError("There are no prompts to record; give at least one.")
    subject = load_spec(spec, manager)

    def ids() -> Iterator[Sequence[int]]:
        for prompt in chain(() if file is None else prompts_in(file), given):
            if isinstance(prompt, str):
                yield subject.encode(check_prompt(prompt), special_tokens)[0].tolist()
            else:
                yield prompt

    def progress(done: int, total: int) -> None:
        listener.progress("tokens", done, total, {})

    origin = {
        "model": spec.model_dump(mode="json", exclude_defaults=True) | {"name": spec.name},
        "special_tokens": special_tokens,
        "versions": versions(manager),
    }
    unrepeatable: set[str] = set()
    expression = sites if isinstance(sites, str) else ",".join(sites)
    with deterministic(), told(unrepeatable.add):
        recording = write(subject, ids, expression, Path(output), origin=origin, storage=storage, progress=progress)
    if unrepeatable:
        listener.message(note(unrepeatable))
    return recording


def _is_pipe(file: Path) -> bool:
    try:
        return file.is_fifo()
    except OSError:  # which reading it says in a sentence
        return False


def _checked(prompt: Any) -> str | Sequence[int]:
    """A prompt that Python code gave: a text, or token ids in a list, a tensor or an array."""
    plain = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(plain, str):
        return plain
    if isinstance(plain, list | tuple) and all(type(index) is int for index in plain):
        return plain
    raise UsageError(f"{prompt!r:.60} is no prompt; expected a text, or a list of token ids.")
