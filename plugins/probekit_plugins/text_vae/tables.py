"""The figures of a result, from the tensors and the token sequences in which it keeps what was measured.

Rows of tokens of several lengths are kept as one tensor, −1 behind each. What is only told, of a training or of a text
that was written, is in the labels of sequences without tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result, TokenSequence
from probekit_plugins.losses import at_end, curve
from probekit_plugins.text_vae.figures import ACTIVE, Interpolation, Latents, Use, log_likelihood
from probekit_plugins.text_vae.summary import summarise

if TYPE_CHECKING:
    from probekit_plugins.text_vae import TextVaeOptions

Row = dict[str, Any]
Tensors = Mapping[str, torch.Tensor]
TABLES = (
    "settings",
    "trained",
    "dimensions",
    "reconstructions",
    "samples",
    "interpolations",
    "analogies",
    "losses",
)
# The tensor of the held-out texts' tokens, and what the phase is called that several autoencoders begin with.
TEXTS, PHASE_1 = "texts", "phase 1"
# Kinds of what is written, by the label `as`.
RECONSTRUCTION, GREEDY, SAMPLED, INTERPOLATION, ANALOGY = (
    "reconstruction",
    "greedy",
    "sampled",
    "interpolation",
    "analogy",
)
# Nats whose exponential is still a number.
GREATEST = 700.0


def of(what: str, name: object, seed: object) -> str:
    """The name of a tensor of a training."""
    return f"{what}/{name}, seed {seed}"


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of tokens, `[n, T]`, −1 behind each."""
    found = torch.full((len(rows), max(map(len, rows), default=0)), -1, dtype=torch.int32)
    for into, row in zip(found, rows, strict=True):
        into[: len(row)] = torch.tensor(row, dtype=torch.int32)
    return found


def fill(result: Result, options: TextVaeOptions) -> None:
    """The tables, the metrics and the finding."""
    tables: dict[str, list[Row]] = {name: [] for name in TABLES}
    tensors = {name: torch.as_tensor(tensor) for name, tensor in result.tensors.items()}
    [about] = result.sequences["about"]
    for training in result.sequences["trainings"]:
        _add(tables, training.labels, tensors, about.labels)
    own = [str(each.labels["text"]) for each in result.sequences.get("texts", [])]
    names = dict.fromkeys(str(each.labels["name"]) for each in result.sequences.get("written", []))
    for name in names:
        written = [each for each in result.sequences["written"] if each.labels["name"] == name]
        _add_written(tables, name, own, written, tensors, options)
    result.tables = tables
    summarise(result, about.labels, int((tensors[TEXTS] >= 0).sum()), len(tensors[TEXTS]), options)


def _add(tables: dict[str, list[Row]], labels: Mapping[str, Any], tensors: Tensors, about: Mapping[str, Any]) -> None:
    """A training's losses, and its row."""
    name, seed, before = labels["name"], labels["seed"], labels["before"]
    losses = tensors[of("losses", name, seed)]
    tables["losses"] += [
        {"name": name, "seed": seed, "step": before + step, "loss": loss} for step, loss in curve(losses)
    ]
    if name == PHASE_1:
        return
    row = {column: value for column, value in labels.items() if column != "before"}
    row |= {"steps": before + len(losses), "loss": at_end(losses)}
    if of("nll", name, seed) in tensors:
        row |= _perplexities(float(tensors[of("nll", name, seed)].sum()), tensors[TEXTS], about)
    else:
        found = Latents(*(tensors[of(what, name, seed)].double() for what in ("mean", "log_variance")))
        row |= _of_autoencoder(tensors, labels, found, about)
        each = zip(found.divergence.mean(0).tolist(), found.variance.tolist(), strict=True)
        tables["dimensions"] += [
            {"name": name, "seed": seed, "dimension": dimension, "kl": divergence, "variance": variance}
            for dimension, (divergence, variance) in enumerate(each)
        ]
    tables["trained"].append(row)


def _of_autoencoder(tensors: Tensors, labels: Mapping[str, Any], found: Latents, about: Mapping[str, Any]) -> Row:
    """The figures of an autoencoder on held-out texts."""

    def kept(what: str) -> torch.Tensor:
        return tensors[of(what, labels["name"], labels["seed"])]

    used, between = Use(kept("nll_given_z")), Interpolation(kept("preference"))
    reconstruction, divergence = float(used.own.mean()), float(found.divergence.sum(1).mean())
    return {
        **_perplexities(-float(log_likelihood(kept("importance")).sum()), tensors[TEXTS], about),
        "reconstruction": reconstruction,
        "kl": divergence,
        "negative_elbo": reconstruction + divergence,
        "mi": float(kept("information").mean()),
        "active": int((found.variance >= ACTIVE).sum()),
        "delta_rec": used.delta,
        "delta_rec_error": used.error,
        "delta_prior": used.of_prior,
        "exact": _exact(kept("written"), tensors[TEXTS]).count(True) / len(kept("written")),
        "gap": between.gap,
        "monotone": between.monotone,
        "mi_ceiling": math.log(len(found.mean)),
    }


def _perplexities(nats: float, texts: torch.Tensor, about: Mapping[str, Any]) -> dict[str, float]:
    """Of all held-out texts: `exp(nats / tokens)`, what ends a text among them, and by word."""
    tokens = int((texts >= 0).sum()) + about["ends"] * len(texts)
    return {
        "ppl": math.exp(min(nats / tokens, GREATEST)),
        "ppl_word": math.exp(min(nats / about["words"], GREATEST)),
    }


def _exact(written: torch.Tensor, texts: torch.Tensor) -> list[bool]:
    """Which texts were written again token for token; of as many as were written."""
    rows = ([[token for token in row if token >= 0] for row in part.tolist()] for part in (written, texts))
    return [one == other for one, other in zip(*rows, strict=False)]


def _add_written(
    tables: dict[str, list[Row]],
    name: str,
    own: Sequence[str],
    written: Sequence[TokenSequence],
    tensors: Tensors,
    options: TextVaeOptions,
) -> None:
    """What one autoencoder wrote, beside the texts that it was given."""

    def texts(kind: str) -> list[str]:
        return [str(each.labels["text"]) for each in written if each.labels["as"] == kind]

    exact = _exact(tensors[f"examples/{name}"], tensors[TEXTS])
    for text, again, same in zip(own, texts(RECONSTRUCTION), exact, strict=False):
        tables["reconstructions"].append({"name": name, "text": text, "written": again, "exact": same})
    for greedy, sampled in zip(texts(GREEDY), texts(SAMPLED), strict=True):
        tables["samples"].append({"name": name, "greedy": greedy, "sampled": sampled})
    points = torch.linspace(0, 1, options.interpolation_steps, dtype=torch.double).tolist()
    for place, text in enumerate(texts(INTERPOLATION)):
        pair, point = divmod(place, len(points))
        ends = {"from": own[3 * pair], "to": own[3 * pair + 1]}
        tables["interpolations"].append({"name": name, "pair": pair, **ends, "t": points[point], "written": text})
    for place, text in enumerate(texts(ANALOGY)):
        a, b, c = own[3 * place : 3 * place + 3]
        tables["analogies"].append({"name": name, "a": a, "b": b, "c": c, "written": text})
