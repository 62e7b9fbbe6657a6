"""The figures of a result, from the tensors and the token sequences in which it keeps what was measured.

What is only told, of a place, of a training or of a label, is in the labels of sequences without tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from probekit import Result, TokenSequence
from probekit_plugins.autoencoder import figures, splice
from probekit_plugins.autoencoder.features import histogram, strongest
from probekit_plugins.autoencoder.labels import agreement
from probekit_plugins.autoencoder.summary import summarise
from probekit_plugins.autoencoder.survived import NONE, shares
from probekit_plugins.losses import at_end, curve

if TYPE_CHECKING:
    from probekit_plugins.autoencoder import AutoencoderOptions

Row = dict[str, Any]
# Points of a scatter of codes.
SCATTERED = 400
# Figures of a splice by the names that they have beside others.
SPLICED = {"loss_recovered_zero": "loss_recovered", "kl": "kl_spliced", "agreement": "top1_agreement"}
# What the prompts, and those that were recovered from exact activations, are called among the survivors.
PROMPT, EXACT = "prompt", "exact"


class Kept:
    """What was measured of one training, or of one place, by the beginning of its tensor's name."""

    def __init__(self, tensors: Mapping[str, Any], *of: str) -> None:
        self._tensors, self._of = tensors, of

    def __contains__(self, what: str) -> bool:
        return "/".join([what, *self._of]) in self._tensors

    def __getitem__(self, what: str) -> torch.Tensor:
        return torch.as_tensor(self._tensors["/".join([what, *self._of])])


def fill(result: Result, options: AutoencoderOptions) -> None:
    """The tables, the metrics and the finding."""
    result.tables |= {"trained": [], "settings": [], "pca": [], "losses": []}
    places = [each.labels for each in result.sequences["places"]]
    for place in places:
        site = str(place["site"])
        for labels in _trainings(result, site):
            _add(result, labels, place)
        own = Kept(result.tensors, site)
        if "principal" in own:
            of_widths = enumerate(figures.fractions(own["principal"], own["spread"]), 1)
            result.tables["pca"] += [{"site": site, "width": width, "fve": fve} for width, fve in of_widths]
        for row in _survival(result, site, options):
            if row["autoencoder"] == NONE:
                count = sum(each.labels["name"] == PROMPT for each in _survivors(result, site))
                about = {"site": site, "prompts": count, "tokens": row["tokens"]}
                result.tables.setdefault("survival_baseline", []).append(about | _survived(row))
        result.tables["trained"] += rows(result, place, options)
    summarise(result, places)


def rows(result: Result, place: Mapping[str, Any], options: AutoencoderOptions) -> list[Row]:
    """The row of each training of a place."""
    site = str(place["site"])
    found = {
        labels["name"]: _row(Kept(result.tensors, site, labels["name"]), labels, place, result)
        for labels in _trainings(result, site)
    }
    decoded = [name for name, row in found.items() if "fve" in row]
    if "spliced" in (own := Kept(result.tensors, site)):
        for name, each in splice.figures(own["spliced"], decoded).items():
            found[name] |= {SPLICED.get(key, key): value for key, value in each.items() if key != "tokens"}
    for row in _survival(result, site, options):
        if row["autoencoder"] != NONE:
            found[row["autoencoder"]] |= _survived(row)
    return list(found.values())


def _trainings(result: Result, site: str) -> Iterator[Row]:
    for each in result.sequences.get("trainings", []):
        if each.labels["site"] == site:
            yield dict(each.labels)


def _row(own: Kept, labels: Mapping[str, Any], place: Mapping[str, Any], result: Result) -> Row:
    """The figures of one training, without what takes the model."""
    row: Row = {name: labels[name] for name in ("site", "name", "variant", "size", "seed")}
    if "nearest_untrained" in own:
        row["retrieval_untrained"] = figures.top1(own["nearest_untrained"])
    if "losses" in own:
        steps = len(own["losses"])
        row |= {"parameters": labels["parameters"], "steps": steps, "examples": steps * labels["batch"]}
        row["loss"] = at_end(own["losses"])
    if "nearest" in own:
        found = figures.Retrieval(own["nearest"], own["distances"], own["potentials"])
        row |= {"retrieval": found.top1, "among": len(found.nearest)}
        row |= {"alignment": found.alignment, "uniformity": found.uniformity}
    if "squared_errors" in own:
        spread = Kept(result.tensors, str(place["site"]))["spread"]
        row |= {
            "fve": figures.fraction_of_variance(own["squared_errors"], spread),
            # The failing control: codes of other tokens.
            "fve_shuffled": figures.fraction_of_variance(own["squared_errors_shuffled"], spread),
            "error": figures.root_mean_square(own["squared_errors"], place["width"]),
            "code": labels["code"],
        }
    if "active" in own:
        row["l0"] = float(own["active"].double().mean())
        row["dead"] = float((own["times_active"] == 0).double().mean())
    elif "labels" in (of_place := Kept(result.tensors, str(place["site"]))):
        row["agreement"] = agreement(own["clusters"], of_place["labels"]) if "clusters" in own else None
    if "posterior" in own:
        posterior = figures.Posterior(*own["posterior"])
        row |= {"kl": float(posterior.divergence.sum()), "active_units": posterior.active}
        row["aggregate_kl"] = float(posterior.aggregate.sum())
    return row


def _add(result: Result, labels: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    """The further tables of one training: its losses, and what is shown of its codes, of the first seed."""
    own, where = Kept(result.tensors, labels["site"], labels["name"]), {name: labels[name] for name in ("site", "name")}
    if "losses" in own:
        result.tables["losses"] += [where | {"step": step, "loss": loss} for step, loss in curve(own["losses"])]
    if "scatter" in own:
        points = own["scatter"].tolist()
        texts = _texts(result, labels["site"]) or [""] * len(points)
        result.tables.setdefault("scatter", []).extend(
            where | {"x": x, "y": y, "label": text} for (x, y), text in zip(points, texts, strict=True)
        )
    if "energy" in own:
        density = own["times_active"].double() / place["examples"]
        result.tables.setdefault("density", []).extend(
            where | {"from": low, "to": high, "features": count} for low, high, count in histogram(density)
        )
        _add_features(result, where, own["energy"], density)
    if "posterior" in own and not labels["seed"]:
        columns = ("kl", "variance_of_means", "mean", "variance")
        result.tables.setdefault("dimensions", []).extend(
            where | {"dimension": dimension} | dict(zip(columns, values, strict=True))
            for dimension, values in enumerate(own["posterior"].T.tolist())
        )


def _add_features(result: Result, where: Row, energy: torch.Tensor, density: torch.Tensor) -> None:
    """The features whose contexts are kept, in their order."""
    first = set(strongest(energy)[0].tolist())
    greatest: dict[int, float] = {}
    for each in result.sequences.get("contexts", []):
        if where.items() <= each.labels.items():
            number = int(each.labels["feature"] or 0)
            kept = Kept(result.tensors, where["site"], where["name"], str(number), str(each.labels["rank"]))
            values = kept["contexts"]
            greatest[number] = max(greatest.get(number, 0.0), float(values.max()))
    result.tables.setdefault("features", []).extend(
        where | {"feature": number, "density": float(density[number]), "greatest": most, "drawn": number not in first}
        for number, most in greatest.items()
    )


def _texts(result: Result, site: str) -> list[str]:
    """The labels of the points of a scatter, where the examples have any."""
    if "labels" not in (own := Kept(result.tensors, site)):
        return []
    texts = {
        each.labels["label"]: str(each.labels["text"])
        for each in result.sequences["labels"]
        if each.labels["site"] == site
    }
    return [texts[label] for label in thinned(own["labels"]).tolist()]


def thinned(often: torch.Tensor) -> torch.Tensor:
    """As many as are scattered, of the examples whose label is frequent."""
    return often[:: max(1, len(often) // SCATTERED)][:SCATTERED]


def _survivors(result: Result, site: str) -> list[TokenSequence]:
    return [each for each in result.sequences.get("survivors", []) if each.labels["site"] == site]


def _survival(result: Result, site: str, options: AutoencoderOptions) -> list[Row]:
    """What survives of the prompts, by autoencoder."""
    every = _survivors(result, site)
    prompts = [each for each in every if each.labels["name"] == PROMPT]
    found = [
        replace(each, labels={**each.labels, "autoencoder": NONE if name == EXACT else name})
        for each in every
        if (name := each.labels["name"]) != PROMPT
    ]
    recovered, aware = ([each for each in found if ("told" in each.labels) == known] for known in (False, True))
    return [dict(row) for row in shares(prompts, recovered, aware, options.skip_first)]


def _survived(row: Mapping[str, Any]) -> Row:
    """Its figures by the names that they have beside others."""
    names = {"token_accuracy": "tokens_survived", "exact_prompts": "prompts_survived"}
    names |= {f"{name}_aware": f"{own}_aware" for name, own in names.items()}
    return {own: row[name] for name, own in names.items() if name in row}
