"""The figures of each setting over its seeds, and the finding."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit_plugins.text_vae.recipe import COLLAPSED

if TYPE_CHECKING:
    from probekit import Result
    from probekit_plugins.text_vae import TextVaeOptions

# Figures over seeds in the table `settings`: the median, the least and the greatest.
SPREAD = (
    "ppl",
    "ppl_word",
    "kl",
    "mi",
    "active",
    "reconstruction",
    "negative_elbo",
    "delta_rec",
    "delta_rec_error",
    "delta_prior",
    "exact",
    "gap",
    "monotone",
    "loss",
)
SAME = ("free_bits", "latent", "mi_ceiling", "parameters", "steps")
# A ΔRec below this is no use of z, however surely it is above zero: it is a hundred times what collapsing leaves.
USED = 0.1
# So many of its own standard errors it must be above zero.
ERRORS = 2
# A control whose PPL is so much of that of the decoder without z says that the latter overfits.
OVERFITTED = 0.98


def summarise(result: Result, about: Mapping[str, Any], tokens: int, held_out: int, options: TextVaeOptions) -> None:
    """Fill the table `settings`, the metrics and the finding; there are so many held-out texts, and tokens of these."""
    rows: list[dict[str, Any]] = result.tables["trained"]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        setting: dict[str, Any] = {"name": name, "kind": own[0]["kind"], "seeds": len(own)}
        setting |= {figure: own[0].get(figure) for figure in SAME}
        for figure in SPREAD:
            values = [row[figure] for row in own if row.get(figure) is not None]
            setting[figure] = median(values) if values else None
            setting[f"{figure}_least"] = min(values) if values else None
            setting[f"{figure}_greatest"] = max(values) if values else None
        result.tables["settings"].append(setting)
    settings = {str(row["name"]): row for row in result.tables["settings"]}
    first: dict[str, Any] = result.tables["settings"][0]
    kept = ("ppl", "kl", "mi", "mi_ceiling", "active", "negative_elbo", "delta_rec", "exact", "gap")
    result.metrics |= {figure: first[figure] for figure in kept}
    result.metrics |= {"texts": about["texts"], "texts_held_out": held_out, "tokens_held_out": tokens}
    result.finding = _finding(first, settings, options)


def is_used(setting: dict[str, Any]) -> bool:
    """Whether z is used, by ΔRec."""
    return bool(setting["delta_rec"] >= max(USED, ERRORS * setting["delta_rec_error"]))


def _finding(first: dict[str, Any], settings: dict[str, dict[str, Any]], options: TextVaeOptions) -> str:
    without = settings.get("no-z")
    ppl = f"PPL {_short(first['ppl'])}" + (f" against {_short(without['ppl'])} without z" if without else "")
    spread = f"{first['delta_rec']:.1f} nats a text"
    if first["seeds"] > 1:
        spread += f" ({first['delta_rec_least']:.1f} to {first['delta_rec_greatest']:.1f} over {first['seeds']} seeds)"
    if not is_used(first):
        return (
            f"With {first['name']}, z is not used: another text's z is as good (ΔRec {first['delta_rec']:.2f} ± "
            f"{first['delta_rec_error']:.2f} nats a text); {ppl}."
        )
    return (
        f"With {first['name']}, knowing z of {options.latent} numbers is worth {spread}, ΔRec; {first['active']:.0f} "
        f"of its dimensions are active, {first['exact']:.0%} of the held-out texts come back token for token; {ppl}."
    )


def _short(value: float) -> str:
    """A perplexity, which of texts far from the prior may be any number."""
    return f"{value:.2f}" if value < 1e6 else f"{value:.2g}"


def notes(result: Result, source: str, options: TextVaeOptions) -> list[str]:
    """What a reader has to know beside the figures; the texts come from `source`."""
    settings: dict[str, dict[str, Any]] = {str(row["name"]): row for row in result.tables["settings"]}
    found = [
        f"Trained on {source}. PPL is by token, estimated with {options.importance_samples} importance samples "
        "of z: an upper bound in the mean. Copies are trained without dropout; the model itself stays as it is."
    ]
    collapsed = settings.get(COLLAPSED)
    if collapsed is not None:
        found.append(
            f"The control, β = 1 from the first step and no free bits, has ΔRec {collapsed['delta_rec']:.3f} ± "
            f"{collapsed['delta_rec_error']:.3f} nats and {collapsed['active']:.0f} active dimensions: "
            + ("it uses z, so it is no control here." if is_used(collapsed) else "it does not use z, as it must be.")
        )
    without = settings.get("no-z")
    if collapsed is not None and without is not None and collapsed["ppl"] < OVERFITTED * without["ppl"]:
        found.append(
            f"The decoder without z overfits these texts: its PPL is {without['ppl']:.2f}, and that of the control, "
            f"which does without z as well, {collapsed['ppl']:.2f}. Compare with the control."
        )
    if options.preset == "t5" and options.seq2seq is None:
        found.append(
            "The preset 't5' is its recipe here, not its architecture: encoder and decoder are copies of this model. "
            "-o seq2seq=… takes a T5."
        )
    if options.seeds == 1:
        found.append("One seed: how far figures spread is not known (-o seeds=3).")
    return found
