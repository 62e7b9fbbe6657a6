"""What takes the model: how it goes on with reconstructions, and what of a prompt comes back from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.bench import Bench, Trained
from probekit_plugins.autoencoder.figures import root_mean_square
from probekit_plugins.autoencoder.modules import Autoencoder
from probekit_plugins.autoencoder.rows import EXACT, PROMPT, Kept
from probekit_plugins.autoencoder.splice import spliced
from probekit_plugins.autoencoder.survival import survivors
from probekit_plugins.autoencoder.survived import NONE
from probekit_plugins.autoencoder.through import Reconstruct, reconstruction

if TYPE_CHECKING:
    from probekit import Subject


def beyond(at: Bench, found: Sequence[Trained]) -> None:
    """What the model, and whoever wants the prompt back, make of the reconstructions."""
    subject = at.context.subject
    modules = {each.name: each.module for each in found}
    reconstructions = {name: reconstruction(each) for name, each in modules.items() if isinstance(each, Autoencoder)}
    if subject is None or not reconstructions:
        return
    documents = [document.ids for document in at.examples.held_out]
    if at.options.splice_tokens:
        _splice(at, subject, reconstructions, _few_tokens(documents, at.options.splice_tokens))
    if at.options.invert:
        _invert(at, subject, reconstructions, documents)


def _splice(
    at: Bench,
    subject: Subject,
    reconstructions: Mapping[str, Reconstruct],
    documents: Sequence[Sequence[int]],
) -> None:
    mean = at.examples.training[:, 0].double().mean(0).float()
    skip = at.options.skip_first
    found = spliced(subject, at.name, reconstructions, documents, skip, mean, at.context)
    if found.reason is not None:
        at.result.notes.append(found.reason)
    if found.sums is not None:
        at.keep(None, spliced=found.sums)


def _invert(
    at: Bench,
    subject: Subject,
    reconstructions: Mapping[str, Reconstruct],
    documents: Sequence[Sequence[int]],
) -> None:
    skip, most = at.options.skip_first, at.options.invert_tokens
    prompts = [list(ids[:most]) for ids in documents if len(ids) > skip][: at.options.invert]
    kept = {name: Kept(at.result.tensors, at.name, name)["squared_errors"] for name in reconstructions}
    errors = {name: root_mean_square(squares, at.held.shape[-1]) for name, squares in kept.items()}
    found = survivors(subject, at.name, reconstructions, prompts, errors, skip, at.context)
    if found.reason is not None:
        at.result.notes.append(found.reason)
    shown = at.result.sequences.setdefault("survivors", [])
    shown += [replace(each, labels={**each.labels, "name": PROMPT}) for each in found.prompts]
    for each in (*found.recovered, *found.aware):
        labels = dict(each.labels)
        name = labels.pop("autoencoder")
        shown.append(replace(each, labels=labels | {"name": EXACT if name == NONE else name}))


def _few_tokens(documents: Sequence[Sequence[int]], most: int) -> list[Sequence[int]]:
    """The first documents that together have at most so many tokens; one at least."""
    chosen: list[Sequence[int]] = []
    for ids in documents:
        if chosen and sum(map(len, chosen)) + len(ids) > most:
            break
        chosen.append(ids)
    return chosen
