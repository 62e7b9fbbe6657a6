"""From what was measured to figures: the table of sites, metrics and the finding. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy

if TYPE_CHECKING:
    from probekit import Result
    from probekit_logit_lens import LogitLensOptions

# The finding names the site from which on the lens agrees with the model at this share of positions.
MOST = 0.5
# Sites with a place in the model's depth; modules within blocks have none there.
IN_DEPTH = re.compile(r"embedding|block\.\d+|norm")

Row = dict[str, Any]


def figured(measured: Result, options: LogitLensOptions) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, and its token sequences."""
    firsts: dict[str, list[int]] = {}
    for sequence in measured.sequences["lens"]:
        if sequence.labels["rank"] == 0:
            firsts.setdefault(str(sequence.labels["site"]), []).extend(sequence.ids)
    rows = _table(measured, firsts)
    metrics = {
        "positions": len(firsts[rows[-1]["site"]]),
        **{
            f"{row['site']}/{name}": row[name]
            for row in rows[:-1]
            for name in ("agreement", "kl_median", "final_probability_median", "next_rank_median")
        },
        "last_block_difference": last_block(measured)[0],
    }
    last = f"block.{measured.tensors['blocks'].item() - 1}"
    in_depth = [row for row in rows[:-1] if IN_DEPTH.fullmatch(row["site"])]
    finding = _finding(in_depth or rows[:-1], {last, "norm"} if options.norm else {"norm"})
    return replace(measured, tables={"sites": rows}, metrics=metrics, finding=finding)


def last_block(result: Result) -> list[float]:
    """At the last block, the largest difference between the lens's logits and the model's, the largest logit, and the
    relative precision, over all prompts.
    """
    found = [numpy.asarray(tensor) for name, tensor in result.tensors.items() if name.startswith("last_block/")]
    largest: list[float] = numpy.stack(found).astype(float).max(0).tolist()
    return largest


def _table(measured: Result, firsts: Mapping[str, Sequence[int]]) -> list[Row]:
    """A row for each site: its figures over the positions of all prompts. The last one is the model itself."""
    names = ("kl", "final_probability", "entropy", "next_probability", "next_rank")
    prompts = range(len(measured.sequences["prompt"]))

    def together(name: str) -> Any:
        found = [numpy.asarray(measured.tensors[f"{name}/{number}"]) for number in prompts]
        return numpy.concatenate(found, axis=1).astype(float)

    figures = {name: together(name) for name in names}
    own = numpy.array(list(firsts.values())[-1])
    rows: list[Row] = []
    for place, (site, first) in enumerate(firsts.items()):
        low, median, high = _quantiles(figures["kl"][place], 0.25, 0.5, 0.75)
        rows.append(
            {
                "site": site,
                "agreement": float((numpy.array(first) == own).mean()),
                "kl_low": low,
                "kl_median": median,
                "kl_high": high,
                **{f"{name}_median": _quantiles(figures[name][place], 0.5)[0] for name in names[1:]},
            }
        )
    return rows


def _quantiles(values: Any, *shares: float) -> list[float | None]:
    """None where there is nothing: prompts of one token have no next one."""
    if not len(values):
        return [None for _ in shares]
    found: list[float | None] = numpy.quantile(values, shares).tolist()
    return found


def _finding(rows: Sequence[Row], made_for: set[str]) -> str:
    """One sentence: from which site on the lens says what the model will say. `made_for` are the sites where it does
    so by construction.
    """
    telling = [row for row in rows if row["site"] not in made_for]
    if not telling:
        shares = ", ".join(f"{row['agreement']:.0%} of positions at {row['site']}" for row in rows)
        return (
            "Only what the head was made for was read: there the lens's first token is the model's own by construction "
            f"({shares})."
        )
    settled = next((place for place in range(len(rows)) if all(row["agreement"] >= MOST for row in rows[place:])), None)
    if settled is not None and rows[settled] in telling:
        at, least = rows[settled], min(row["agreement"] for row in rows[settled:])
        before = (
            f"goes from {rows[0]['kl_median']:.2g} bits at {rows[0]['site']} to {at['kl_median']:.2g} bits there"
            if settled
            else f"is {at['kl_median']:.2g} bits there"
        )
        return (
            f"From {at['site']} on, the lens's first token is the model's own at {least:.0%} of positions or more; the "
            f"median KL divergence from the model's own distribution {before}."
        )
    best = max(telling, key=lambda row: row["agreement"])
    return (
        f"{'Before the last block' if len(telling) < len(rows) else 'At the sites read'}, the lens's first token is "
        f"the model's own at {best['agreement']:.0%} of positions at most: at {best['site']}, with a median KL "
        f"divergence from the model's own distribution of {best['kl_median']:.2g} bits."
    )
