"""The result of a run in a few figures: each setting over its seeds, and the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.autoencoder import AutoencoderOptions
    from probekit_plugins.autoencoder.data import Data
    from probekit_plugins.examples import Examples

Row = dict[str, Any]
# What is counted at each place.
COUNTS = ("documents", "documents_held_out", "examples", "examples_held_out")
# Figures of a training that have a distribution over seeds.
SPREAD = (
    "fve",
    "fve_shuffled",
    "error",
    "l0",
    "dead",
    "kl",
    "active_units",
    "aggregate_kl",
    "retrieval",
    "retrieval_untrained",
    "alignment",
    "uniformity",
    "agreement",
    "loss_recovered",
    "loss_recovered_mean",
    "kl_spliced",
    "top1_agreement",
    "tokens_survived",
    "prompts_survived",
    "tokens_survived_aware",
    "prompts_survived_aware",
)


def summarise(result: Result, places: Sequence[Mapping[str, Any]]) -> None:
    """Add the table `settings`, metrics and the finding; `places` say what is told of each, as `run` keeps it."""
    rows = result.tables["trained"]
    for site, setting in dict.fromkeys((str(row["site"]), _setting(row)) for row in rows):
        same = [row for row in rows if row["site"] == site and _setting(row) == setting]
        over: Row = {"site": site, "setting": setting, "variant": same[0]["variant"], "size": same[0]["size"]}
        over |= {"code": same[0].get("code"), "seeds": len(same), "pca": _pca(result, site, same)}
        for name in SPREAD:
            values = [float(value) for row in same if isinstance(value := row.get(name), int | float)]
            if values:
                over |= {name: median(values), f"{name}_least": min(values), f"{name}_greatest": max(values)}
                result.metrics[f"{site}/{setting}/{name}"] = over[name]
        if over["pca"] is not None:
            result.metrics[f"{site}/{setting}/pca"] = over["pca"]
        result.tables["settings"].append(over)
    for place in places:
        for name in COUNTS:
            result.metrics[f"{place['site']}/{name}"] = place[name]
    result.finding = _finding(result, str(places[0]["source"]))


def _setting(row: Mapping[str, Any]) -> str:
    return str(row["name"]).removesuffix(f"-seed{row['seed']}")


def _pca(result: Result, site: str, same: Sequence[Row]) -> float | None:
    """FVE of PCA with as many components as the code has dimensions, or active features."""
    row = same[0]
    size = row.get("code")
    if row.get("l0") is not None:
        size = round(median(float(each["l0"]) for each in same))
    for each in result.tables["pca"]:
        if each["site"] == site and each["width"] == size:
            return float(each["fve"]) if isinstance(each["fve"], int | float) else None
    return None


def _finding(result: Result, source: str) -> str:
    """What the best of the dense, the sparse and the contrastive codes keeps, at the first site."""
    rows = result.tables["settings"]
    parts = []
    first = [row for row in rows if row["site"] == rows[0]["site"]] if rows else []
    for kind in dict.fromkeys(map(_kind, first)):
        of_kind = [row for row in first if _kind(row) == kind]
        best = max(of_kind, key=lambda row: float(row.get("fve", row.get("retrieval", 0)) or 0))
        parts.append(_kept(best))
    return f"At {rows[0]['site']}, on documents that were held out of {source}: {'; '.join(parts)}." if parts else ""


def _kind(row: Mapping[str, Any]) -> str:
    if row.get("retrieval") is not None:
        return "contrastive"
    return "dense" if row.get("l0") is None else "sparse"


def _kept(row: Mapping[str, Any]) -> str:
    if row.get("retrieval") is not None:
        return (
            f"{row['setting']} finds the other view of {row['retrieval']:.0%} of the activations, "
            f"{row.get('retrieval_untrained', 0):.0%} before training"
        )
    if row.get("fve") is None:
        return f"{row['setting']} has nothing to explain, since nothing varies"
    size = f"with {row['l0']:.3g} features active" if row.get("l0") is not None else f"in {row['code']} numbers"
    text = f"{row['setting']} keeps {row['fve']:.1%} of the variance {size}"
    if row.get("pca") is not None:
        text += f" (PCA {row['pca']:.1%})"
    if row.get("loss_recovered") is not None:
        text += f" and recovers {row['loss_recovered']:.1%} of the model's loss"
    if row.get("tokens_survived") is not None:
        text += f", and {row['tokens_survived']:.0%} of the prompts' tokens come back from it"
    if row.get("tokens_survived_aware") is not None:
        text += f" ({row['tokens_survived_aware']:.0%} if the autoencoder is known)"
    return text


def notes(examples: Sequence[tuple[str, Examples]], data: Data, options: AutoencoderOptions) -> list[str]:
    """What a reader has to know beside the figures."""
    said = []
    if data.source == "what the model writes itself":
        said.append(
            f"There were fewer than ten prompts, so the model wrote {options.pieces} pieces of text itself to train "
            "on; give many prompts (--prompts FILE) or a text (-o text=FILE) for activations of real text."
        )
    for site, found in examples:
        if found.seen > len(found.training):
            said.append(
                f"Of {found.seen} examples at {site}, {len(found.training)} were kept to train on, drawn evenly; more "
                f"fit with -o buffer_memory={2 * options.buffer_memory:g}."
            )
    if options.seconds is not None:
        said.append("Trainings ended after a number of seconds at the latest: two runs may differ.")
    if options.skip_first:
        positions = "the first position" if options.skip_first == 1 else f"the first {options.skip_first} positions"
        said.append(f"Without {positions} of each document, whose activations are outliers.")
    return said
