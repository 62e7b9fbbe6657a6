"""A result of the autoencoder that was made up: every part that a page can have, with figures that are easy to find."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy

from probekit import Result, TokenSequence

Row = dict[str, Any]
# Variant → its sizes. A figure of the second seed is this much greater than that of the first.
SIZES: dict[str, tuple[float, ...]] = {
    "plain": (4, 8),
    "variational": (4, 8),
    "contrastive": (4, 8),
    "topk": (2, 6),
    "l1": (0.3, 3.0),
}
STEP = 0.01
SPARSE = ("topk", "l1")


def everything(sites: tuple[str, ...] = ("block.1",), seeds: int = 2, hostile: str = " the") -> Result:
    """Every variant at two sizes with each seed at each site, spliced in and inverted; one token is `hostile`."""
    result = Result(tables={"trained": [], "settings": [], "pca": [], "losses": []})
    for site in sites:
        result.metrics |= {
            f"{site}/documents": 60,
            f"{site}/documents_held_out": 6,
            f"{site}/examples": 5432,
            f"{site}/examples_held_out": 543,
        }
        result.tables["pca"] += [{"site": site, "width": width, "fve": width / 16} for width in range(1, 17)]
        for variant, sizes in SIZES.items():
            for size in sizes:
                _setting(result, site, variant, size, seeds, hostile)
        table(result, "survival_baseline").append(
            {"site": site, "tokens_survived": 0.96, "prompts_survived": 0.5, "prompts": 2, "tokens": 22}
        )
        for number in range(2):
            named = {"prompt": [5, 6, 7, 8], "exact": [5, 6, 7, 8]}
            named |= {str(row["name"]): [5, 6, 9, 8] for row in result.tables["trained"] if "fve" in row}
            result.sequences.setdefault("survivors", []).extend(
                TokenSequence(ids, [hostile, *(f"t{index}" for index in ids[1:])], _labels(site, name, prompt=number))
                for name, ids in named.items()
            )
    return result


def table(result: Result, name: str) -> list[Row]:
    """A table of the result; an empty one where there is none yet."""
    return result.tables.setdefault(name, [])


def _labels(site: str, name: str, **others: Any) -> Row:
    return {"site": site, "name": name, **others}


def _setting(result: Result, site: str, variant: str, size: float, seeds: int, hostile: str) -> None:
    setting = f"{variant}-{'k' if variant == 'topk' else ''}{size:g}"
    figures = _figures(variant, size)
    rows = []
    for seed in range(seeds):
        name = f"{setting}-seed{seed}"
        row = _labels(site, name, variant=variant, size=size, seed=seed, parameters=1234, steps=100, examples=6400)
        row |= {"loss": 0.25, **{figure: value + STEP * seed for figure, value in figures.items()}}
        row |= {"code": 64 if variant in SPARSE else size}
        row |= {"among": 50} if variant == "contrastive" else {"ce_clean": 2.0, "ce_zero": 7.0, "ce_mean": 4.0}
        rows.append(row)
        result.tables["losses"] += [_labels(site, name, step=step, loss=1 / step + seed) for step in (1, 10, 100)]
        result.files |= {f"{site}/{name}/cfg.json": b"{}", f"{site}/{name}/weights.safetensors": b""}
        result.seconds[f"training {site}/{name}"] = 3.5
    result.tables["trained"] += rows
    over = {"site": site, "setting": setting, "variant": variant, "size": size, "code": rows[0]["code"]}
    over |= {"seeds": seeds, "pca": None if variant == "contrastive" else 0.3}
    for figure in figures:
        values = [row[figure] for row in rows]
        over |= {figure: median(values), f"{figure}_least": min(values), f"{figure}_greatest": max(values)}
    result.tables["settings"].append(over)
    first = _labels(site, f"{setting}-seed0")
    if variant in SPARSE:
        table(result, "density").extend(
            first | {"from": -5 + index / 4, "to": -5 + (index + 1) / 4, "features": index} for index in range(20)
        )
        _features(result, first, hostile)
    else:
        table(result, "scatter").extend(first | {"x": x, "y": -x, "label": hostile} for x in (0.5, 1.5))
    if variant == "variational":
        table(result, "dimensions").extend(
            first | {"dimension": each, "kl": 0.5 * each, "variance_of_means": 0.4 * each, "mean": 0.1, "variance": 1.2}
            for each in range(int(size))
        )


def _figures(variant: str, size: float) -> Row:
    if variant == "contrastive":
        found = {"retrieval": 0.8, "retrieval_untrained": 0.6, "alignment": 0.11, "uniformity": -3.2, "agreement": 0.9}
        return found
    found = {"fve": 0.5 + size / 100, "fve_shuffled": -0.45, "error": 1.0}
    found |= {"loss_recovered": 0.91, "loss_recovered_mean": 0.81, "kl_spliced": 0.35, "top1_agreement": 0.71}
    found |= {"tokens_survived": 0.62 + size / 100, "prompts_survived": 0.25}
    if variant in SPARSE:
        return found | {"l0": 2 * size, "dead": 0.125}
    found |= {"agreement": 0.42}
    return found | ({"kl": 12.5, "active_units": 3, "aggregate_kl": 1.75} if variant == "variational" else {})


def _features(result: Result, first: Row, hostile: str) -> None:
    for feature, drawn in ((11, False), (37, True)):
        about = first | {"feature": feature}
        table(result, "features").append(about | {"density": 0.0123, "greatest": 8.0, "drawn": drawn})
        for rank, document in enumerate((3, 4)):
            key = f"contexts/{first['site']}/{first['name']}/{feature}/{rank}"
            result.tensors[key] = numpy.array([0.0, 2.0, 8.0 - rank], dtype=numpy.float32)
            labels = about | {"rank": rank, "peak": 2, "document": document}
            # Not in their order: it is the rank that counts.
            result.sequences.setdefault("contexts", []).insert(0, TokenSequence([1, 2, 3], ["a", "b", hostile], labels))
