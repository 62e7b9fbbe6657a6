"""The figures of a result, from the tensors and the token sequences in which it keeps what was measured.

Among its tables are texts in groups, by length or by their surprisal under the model: how many of each come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result
from probekit_plugins.losses import curve
from probekit_plugins.one_word_autoencoder.figures import DECODED, UNTRAINED, exact, figures, first_figures, memories
from probekit_plugins.one_word_autoencoder.summary import summarise

if TYPE_CHECKING:
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions

Row = dict[str, Any]
# What is known of the texts, `[n, T]`, `[n]` and `[n]`; and the beginnings of further names of tensors.
WANTED, LENGTHS, SURPRISAL = "texts/wanted", "texts/lengths", "texts/surprisal"
LOSSES, MEMORY = "losses", "memory"
# Groups of texts at most, each as large as the others where possible.
GROUPS = 8
# The least and the greatest value of a group, and its texts, `[n]`.
Group = tuple[float, float, torch.Tensor]


def fill(result: Result, options: OneWordAutoencoderOptions) -> None:
    """The tables, the metrics and the finding."""
    tables = result.tables
    tables |= {name: [] for name in ("trained", "settings", "by_length", "by_surprisal", "losses")}
    tensors = {name: torch.as_tensor(tensor) for name, tensor in result.tensors.items()}
    wanted = tensors[WANTED]
    for training in result.sequences["trainings"]:
        labels: dict[str, Any] = {name: training.labels[name] for name in ("setting", "seed")}
        name = f"{labels['setting']}, seed {labels['seed']}"
        found = figures(tensors, name, wanted, options.distortion)
        before = first_figures(tensors, name + UNTRAINED, wanted)
        row = {**training.labels, "steps": len(tensors[f"{LOSSES}/{name}"]), **found}
        row |= {f"{figure}_untrained": value for figure, value in before.items()}
        tables["trained"].append(row)
        tables["losses"] += [{**labels, "step": at, "loss": loss} for at, loss in curve(tensors[f"{LOSSES}/{name}"])]
        back = exact(tensors[f"{DECODED}/{name}"], wanted)
        tables["by_length"] += by_group(labels, back, lengths(tensors[LENGTHS]))
        tables["by_surprisal"] += by_group(labels, back, surprisals(tensors[SURPRISAL]))
        if f"{MEMORY}/{name}" in tensors:
            rows = enumerate(memories(tensors[f"{MEMORY}/{name}"]), 2)
            tables.setdefault("memory", []).extend({**labels, "segment": number, **each} for number, each in rows)
    [about] = result.sequences["about"]
    texts = _of_texts(about.labels, wanted, tensors[LENGTHS], tensors[SURPRISAL])
    summarise(result, texts, str(about.labels["source"]))


def _of_texts(about: Mapping[str, Any], wanted: torch.Tensor, lengths: torch.Tensor, nats: torch.Tensor) -> Row:
    """What texts were trained on and held out, and how surprising the latter are to the model."""
    return {
        "texts": about["texts"],
        "texts_held_out": len(lengths),
        "tokens_least": int(lengths.min()),
        "tokens_greatest": int(lengths.max()),
        "width": about["width"],
        "site": about["site"],
        "bits_median": nats.median().item() / log(2),
        "nats_per_token": nats.double().sum().item() / (wanted >= 0).sum().item(),
    }


def lengths(counts: torch.Tensor) -> list[Group]:
    """Texts of each number of tokens, or of stretches of it where there are many."""
    return _groups(counts.double())


def surprisals(nats: torch.Tensor) -> list[Group]:
    """Texts in groups by `−log₂ p` under the model, in bits."""
    return _groups(nats.double() / log(2))


def by_group(labels: Mapping[str, Any], exact: torch.Tensor, groups: list[Group]) -> list[dict[str, Any]]:
    """How many texts of each group come back exactly; `exact` is `[n]`."""
    return [
        {
            **labels,
            "least": least,
            "greatest": greatest,
            "texts": len(rows),
            "exact": exact[rows].double().mean().item(),
        }
        for least, greatest, rows in groups
    ]


def _groups(values: torch.Tensor) -> list[Group]:
    distinct = values.unique()
    if len(distinct) <= GROUPS:
        return [(float(each), float(each), (values == each).nonzero()[:, 0]) for each in distinct]
    edges = values.quantile(torch.linspace(0, 1, GROUPS + 1, dtype=values.dtype)).unique()
    place = torch.bucketize(values, edges[1:-1], right=True)
    rows = [(place == number).nonzero()[:, 0] for number in range(len(edges) - 1)]
    return [(float(values[each].min()), float(values[each].max()), each) for each in rows if len(each)]
