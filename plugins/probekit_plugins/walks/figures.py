"""From what was measured to figures: tables, metrics and the finding of every walk. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from probekit_plugins.walks.options import CONTROLS
from probekit_plugins.walks.page import share_of

if TYPE_CHECKING:
    from probekit import Result

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
METRICS = (
    *("r_l1", "r_l2", "r_over_noise_l1", "r_over_noise_l2", "input_l2", "output_l2"),
    *("input_share", "output_share", "changed_share"),
)
# A finding names the figure of each walk at each site up to so many of them, else the least and the greatest.
MOST_NAMED = 6


def figured(result: Result) -> Result:
    """A walk's result with the figures that follow from its tensors (of torch or of numpy) and token sequences."""
    found = replace(result, tables={"prompts": _prompts(result), "walkers": _walkers(result)}, metrics={})
    _summarise(found)
    return found


def _prompts(result: Result) -> list[Row]:
    """`‖e*‖` and `‖t‖` of each prompt at each site."""
    places = [(prompt.labels["prompt"], prompt.labels["site"]) for prompt in result.sequences["prompt"]]
    return [
        {
            "prompt": number,
            "site": site,
            **{name: result.tensors[f"{number}/{site}/{name}"].item() for name in ("embeddings_l2", "activation_l2")},
        }
        for number, site in places
    ]


def _walkers(result: Result) -> list[Row]:
    """Every walker at the end of its walk."""
    rows: list[Row] = []
    truths = {(prompt.labels["prompt"], prompt.labels["site"]): prompt.ids for prompt in result.sequences["prompt"]}
    ends = [sequence for sequence in result.sequences["walk"] if "text" in sequence.labels]
    for labels in (end.labels for end in ends):
        place = {name: labels[name] for name in ("prompt", "site", "track")}
        prefix = "/".join(map(str, place.values()))
        walker = int(labels["walker"] or 0)
        truth = truths[labels["prompt"], labels["site"]]
        best = result.tensors[f"{prefix}/ids"][-1, walker, :, 0].tolist()
        changed = sum(index != wanted for index, wanted in zip(best, truth, strict=True))
        names = ("input_l1", "input_l2", "output_l1", "output_l2")
        row = {name: result.tensors[f"{prefix}/{name}"][-1, walker].item() for name in names}
        angles, products = (result.tensors[f"{prefix}/{name}"][:, walker] for name in ("orthogonality", "product"))
        rows.append(
            {
                **place,
                "control": labels["track"] in CONTROLS,
                "walker": walker,
                **row,
                **_shares(result, f"{labels['prompt']}/{labels['site']}", row),
                **_ratios(result, prefix, row, walker),
                "orthogonality": angles.max().item(),
                "product": products.max().item(),
                "changed": changed,
                "changed_share": changed / len(truth),
                "text": labels["text"],
            }
        )
    return rows


def _shares(result: Result, prefix: str, row: dict[str, float]) -> Row:
    """`d_i / ‖e*‖` and `d_o / ‖t‖` at the end, in L2."""
    scales = {"input": "embeddings_l2", "output": "activation_l2"}
    lengths = {of: result.tensors[f"{prefix}/{name}"].item() for of, name in scales.items()}
    return {f"{of}_share": row[f"{of}_l2"] / length if length else None for of, length in lengths.items()}


def _ratios(result: Result, prefix: str, row: dict[str, float], walker: int) -> Row:
    """`r = d_i / d_o` at the end, and `r / r_noise`: the median over draws of the noise's d_o, over this d_o."""
    found: Row = {}
    for order in ("l1", "l2"):
        output, noise = row[f"output_{order}"], result.tensors[f"{prefix}/noise_{order}"][-1, walker]
        found[f"r_{order}"] = row[f"input_{order}"] / output if output else None
        found[f"r_over_noise_{order}"] = median(noise.tolist()) / output if output else None
    return found


def _summarise(result: Result) -> None:
    """Metrics by site and track over prompts and walkers, and the finding."""
    rows = result.tables["walkers"]
    shown: dict[str, list[str]] = {}
    for site, track in dict.fromkeys((str(row["site"]), str(row["track"])) for row in rows):
        chosen = [row for row in rows if row["site"] == site and row["track"] == track]
        key = f"{site}/{track}"
        for name in METRICS:
            values = [float(value) for row in chosen if (value := row[name]) is not None]
            for figure, of in (("median", median), ("min", min), ("max", max)):
                result.metrics[f"{key}/{name}_{figure}"] = of(values) if values else None
        result.metrics[f"{key}/orthogonality_max"] = max(float(row["orthogonality"] or 0) for row in chosen)
        if not chosen[0]["control"]:
            shown.setdefault(site, []).append(track)
    if sum(map(len, shown.values())) > MOST_NAMED:
        result.finding = _extremes(result, shown)
    else:
        result.finding = " ".join(_finding(result, site, tracks) for site, tracks in shown.items())


def _finding(result: Result, site: str, tracks: Sequence[str]) -> str:
    """What came of the walks at one site: how far they went, how much less the activation notices than of noise, and
    whether tokens changed; medians over prompts and walkers.
    """
    keys = [f"{site}/{track}" for track in tracks]
    named = [f" ({track})" if len(tracks) > 1 else "" for track in tracks]
    steps = result.tensors[f"0/{keys[0]}/steps"][-1].item()
    shares = [float(share) for key in keys if (share := result.metrics[f"{key}/input_share_median"]) is not None]
    far = f"{share_of(min(shares), max(shares))} their norm " if shares else ""
    noise = _listed([f"{_times(result, key)}{name}" for key, name in zip(keys, named, strict=True)])
    if all(result.metrics[f"{key}/changed_share_max"] == 0 for key in keys):
        tokens = "No token changes."
    else:
        parts = [float(result.metrics[f"{key}/changed_share_median"] or 0) for key in keys]
        changed = _listed([f"{part:.0%}{name}" for part, name in zip(parts, named, strict=True)])
        tokens = f"{changed} of the tokens change."
    return (
        f"At {site}, {steps} steps take the embeddings {far}away from the prompt's; Gaussian noise of that length "
        f"moves the activation {noise} as far as the walk does. {tokens}"
    )


def _extremes(result: Result, shown: dict[str, list[str]]) -> str:
    """The finding of many walks: between which figures they lie."""
    found = [
        (float(value), f"{site}, {track}")
        for site, tracks in shown.items()
        for track in tracks
        if (value := result.metrics[f"{site}/{track}/r_over_noise_l2_median"]) is not None
    ]
    count = sum(map(len, shown.values()))
    if not found:
        return f"In none of {count} walks did the activation move."
    (low, where), (high, there) = min(found), max(found)
    return (
        f"Gaussian noise of a walk's length moves the activation between {low:.3g} times ({where}) and {high:.3g} "
        f"times ({there}) as far as the walk does, over {count} walks at {len(shown)} sites."
    )


def _times(result: Result, key: str) -> str:
    value = result.metrics[f"{key}/r_over_noise_l2_median"]
    return "∞ times" if value is None else f"{float(value):.3g} times"


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
