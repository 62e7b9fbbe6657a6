"""What takes the model: how it goes on with reconstructions, and what of a prompt comes back from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.bench import Bench, Row, Trained
from probekit_plugins.autoencoder.modules import Autoencoder
from probekit_plugins.autoencoder.splice import spliced
from probekit_plugins.autoencoder.survival import NONE, survivors
from probekit_plugins.autoencoder.through import Reconstruct, reconstruction

if TYPE_CHECKING:
    from probekit import Subject

# Figures of a splice by the names that they have beside others.
SPLICED = {"loss_recovered_zero": "loss_recovered", "kl": "kl_spliced", "agreement": "top1_agreement"}


def beyond(at: Bench, found: Sequence[Trained]) -> None:
    """What the model, and whoever wants the prompt back, make of the reconstructions."""
    subject = at.context.subject
    decoded, reconstructions = {}, {}
    for each in found:
        if isinstance(each.module, Autoencoder):
            decoded[each.name], reconstructions[each.name] = each, reconstruction(each.module)
    if subject is None or not decoded:
        return
    documents = [document.ids for document in at.examples.held_out]
    if at.options.splice_tokens:
        _splice(at, subject, decoded, reconstructions, _few_tokens(documents, at.options.splice_tokens))
    if at.options.invert:
        _invert(at, subject, decoded, reconstructions, documents)


def _splice(
    at: Bench,
    subject: Subject,
    decoded: Mapping[str, Trained],
    reconstructions: Mapping[str, Reconstruct],
    documents: Sequence[Sequence[int]],
) -> None:
    mean = at.examples.training[:, 0].double().mean(0).float()
    skip = at.options.skip_first
    found = spliced(subject, at.name, reconstructions, documents, skip, mean, at.context)
    if found.reason is not None:
        at.result.notes.append(found.reason)
    for name, row in found.rows.items():
        decoded[name].row.update({SPLICED.get(key, key): value for key, value in row.items() if key != "tokens"})


def _invert(
    at: Bench,
    subject: Subject,
    decoded: Mapping[str, Trained],
    reconstructions: Mapping[str, Reconstruct],
    documents: Sequence[Sequence[int]],
) -> None:
    skip, most = at.options.skip_first, at.options.invert_tokens
    prompts = [list(ids[:most]) for ids in documents if len(ids) > skip][: at.options.invert]
    errors = {name: float(each.row["error"]) for name, each in decoded.items()}
    found = survivors(subject, at.name, reconstructions, prompts, errors, skip, at.context)
    if found.reason is not None:
        at.result.notes.append(found.reason)
    for row in found.rows:
        figures_of: Row = {"tokens_survived": row["token_accuracy"], "prompts_survived": row["exact_prompts"]}
        if row["autoencoder"] == NONE:
            about: Row = {"site": at.name, "prompts": len(prompts), "tokens": row["tokens"]}
            at.result.tables.setdefault("survival_baseline", []).append(about | figures_of)
        else:
            figures_of["tokens_survived_aware"] = row["token_accuracy_aware"]
            figures_of["prompts_survived_aware"] = row["exact_prompts_aware"]
            decoded[str(row["autoencoder"])].row.update(figures_of)
    shown = at.result.sequences.setdefault("survivors", [])
    shown += [replace(each, labels={**each.labels, "name": "prompt"}) for each in found.prompts]
    for each in (*found.recovered, *found.aware):
        labels = dict(each.labels)
        name = labels.pop("autoencoder")
        shown.append(replace(each, labels=labels | {"name": "exact" if name == NONE else name}))


def _few_tokens(documents: Sequence[Sequence[int]], most: int) -> list[Sequence[int]]:
    """The first documents that together have at most so many tokens; one at least."""
    chosen: list[Sequence[int]] = []
    for ids in documents:
        if chosen and sum(map(len, chosen)) + len(ids) > most:
            break
        chosen.append(ids)
    return chosen
