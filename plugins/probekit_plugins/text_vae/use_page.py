"""Whether z is used and what for: perplexity against mutual information, ΔRec by setting, KL by dimension."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import StatisticsError, correlation, median
from typing import TYPE_CHECKING, Any

from probekit_plugins.autoencoder.page_figures import DATUM, LINES, number, some
from probekit_plugins.text_vae.page_figures import (
    LSTM,
    NO_Z,
    Row,
    by_name,
    chosen,
    column,
    having,
    label,
    setting,
    settings,
    several_seeds,
    written,
)
from probekit_plugins.text_vae.recipe import AUTOENCODER, COLLAPSED
from probekit_plugins.text_vae.summary import USED

if TYPE_CHECKING:
    from probekit import Page, Result

# Variance of its mean from which on a dimension counts as active, as in `figures`, which needs torch.
ACTIVE = 0.01
# Perplexities so many times apart are drawn on a logarithmic axis; KL so many times apart in charts of their own.
APART = 4
MUCH_GREATER = 10
_TOP = {"orient": "top", "title": None, "columns": 3, "symbolType": "circle", "labelLimit": 240}
_X, _Y = {"type": "quantitative"}, {"type": "quantitative"}


def draw_perplexity(result: Result, page: Page) -> None:
    """Does PPL rise with MI?"""
    trained = having(result.tables.get("trained", []), "ppl", "mi")
    if not trained:
        return
    others = [row for row in trained if row["name"] != AUTOENCODER]
    # It has no prior to speak of, and would leave no room for the others.
    left_out = bool(others) and _greatest(trained) > MUCH_GREATER * _greatest(others)
    trained = others if left_out else trained
    page.heading("Does perplexity rise with what z says?")
    page.prose(_rises(result))
    rules = [row for name in (NO_Z, LSTM) if (row := setting(result, name)) is not None and having([row], "ppl")]
    values = [
        {"setting": label(row["name"]), "seed": row["seed"], "MI": row["mi"], "PPL": row["ppl"]} for row in trained
    ]
    lines = [{"setting": label(row["name"]), "PPL": row["ppl"]} for row in rules]
    perplexities = [float(value["PPL"]) for value in [*values, *lines]]
    far = max(perplexities) > APART * min(perplexities)
    scale: dict[str, Any] = {"type": "log", "nice": False} if far else {"zero": False}
    low, high = min(perplexities), max(perplexities)
    scale["domain"] = [low / 1.15, high * 1.15] if far else _padded(low, high)
    y = {
        "type": "quantitative",
        "title": "PPL by token",
        "scale": scale,
        "axis": {"format": "~g", "labelOverlap": True},
    }
    x = {"type": "quantitative", "title": "MI, nats"}
    names = list(dict.fromkeys(value["setting"] for value in [*values, *lines]))
    colour = {"type": "nominal", "scale": {"domain": names}, "legend": _TOP}
    layer: list[dict[str, Any]] = []
    ceiling = next((found for row in trained if (found := number(row.get("mi_ceiling"))) is not None), None)
    if ceiling is not None:
        layer.append({"mark": {"type": "rule", "strokeDash": [2, 3]}, "encoding": {"x": {"datum": ceiling, **_X}}})
    for line in lines:
        encoding = {"y": {"datum": line["PPL"], **_Y}, "color": {"datum": line["setting"]}}
        layer.append({"mark": {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.5}, "encoding": encoding})
    points = {
        "mark": {"type": "point", "filled": True, "size": 70, "tooltip": DATUM},
        "encoding": {
            "x": {"field": "MI", **x},
            "y": {"field": "PPL", **y},
            "color": {"field": "setting", **colour},
        },
    }
    page.chart(
        {"data": {"values": values}, "height": 280, "layer": [points, *layer]},
        caption="PPL against MI, a point for each training"
        + (f"; broken lines are the PPL of the {' and the '.join(each['setting'] for each in lines)}" if lines else "")
        + ("; the dotted one is MI's ceiling, ln N" if ceiling is not None else "")
        + ("; logarithmic" if far else "")
        + (f"; without the {label(AUTOENCODER)}, whose PPL is far above" if left_out else ""),
    )


def draw_use(result: Result, page: Page) -> None:
    """ΔRec of each training, with the control that must fail; and what else says that z is used."""
    rows, trained = having(settings(result), "delta_rec"), having(result.tables.get("trained", []), "delta_rec")
    if not rows or not trained:
        return
    page.heading("Is z used?")
    control = setting(result, COLLAPSED)
    bound = number((control or {}).get("delta_rec_greatest"))
    page.prose(
        "A decoder that reads z writes a text worse from the z of another. The control was trained with β = 1 from the "
        "first step and without free bits; its z must not be used, and what it has is what others can have by chance."
        if bound is not None
        else "A decoder that reads z writes a text worse from the z of another. The control that must fail was not "
        "trained (-o beside=collapsed): what ΔRec can be by chance is not known."
    )
    names = [label(row["name"]) for row in rows]
    values = [{"setting": label(row["name"]), "seed": row.get("seed"), "ΔRec": row["delta_rec"]} for row in trained]
    y = {"field": "setting", "type": "nominal", "sort": names, "title": None, "axis": {"labelLimit": 360}}
    x = {"field": "ΔRec", "type": "quantitative", "title": "ΔRec, nats a text"}
    layer: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "strokeWidth": 1}, "encoding": {"x": {"datum": 0, **_X}}},
        {
            "data": {"values": [{"setting": label(row["name"]), "median": row["delta_rec"]} for row in rows]},
            "mark": {"type": "tick", "thickness": 3, "size": 20},
            "encoding": {"y": y, "x": {**x, "field": "median"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 0.8, "tooltip": DATUM},
            "encoding": {"y": y, "x": x},
        },
    ]
    if bound is not None:
        rule = {"mark": {"type": "rule", "strokeDash": [6, 4]}, "encoding": {"x": {"datum": bound, **_X}}}
        layer.insert(1, rule)
    page.chart(
        {"data": {"values": values}, "height": 34 * len(names) + 10, "layer": layer},
        caption="ΔRec of each training; a tick is the median"
        + ("; the broken line is the control's greatest" if bound is not None else ""),
    )
    _by_control(page, rows, max(USED, bound or 0.0), bound is not None)
    columns = {
        "NLL given its own z": column(rows, "reconstruction", ".2f"),
        "ΔRec: z of another text": column(rows, "delta_rec", ".3f"),
        "z drawn from N(0, I)": column(rows, "delta_prior", ".3f"),
        "end-point gap": column(rows, "gap", ".3f"),
        "pairs monotone": column(rows, "monotone", ".2f"),
    }
    shown = {title: cells for title, cells in columns.items() if any(cell is not None for cell in cells)}
    page.table(
        ["setting", *shown],
        [[label(row["name"]), *(cells[index] for cells in shown.values())] for index, row in enumerate(rows)],
        caption="What z is worth, in nats a text" + (": median over seeds" if several_seeds(rows) else ""),
        remark="ΔRec, and z from N(0, I), are how much greater the NLL is than with its own z. Between two texts z "
        "goes from the one's mean to the other's: the end-point gap is how far log p(x₁ | z) − log p(x₂ | z) falls on "
        "the way, and a pair is monotone if it never rises. A gap of nothing can be monotone: that alone says little.",
    )


def draw_dimensions(result: Result, page: Page) -> None:
    """KL of each dimension, the greatest first."""
    found = {name: _sorted(rows) for name, rows in by_name(having(result.tables.get("dimensions", []), "kl")).items()}
    found = {name: points for name, points in found.items() if len(points) > 1}
    if not found:
        return
    page.heading("What each dimension costs")
    page.prose(
        "KL(q(z_i | x) ‖ N(0, 1)) of each dimension i of z, the mean over held-out texts, the greatest first. One that "
        "is at 0 says nothing; one at λ may cost that much and say nothing all the same, as up to λ it is free. A "
        f"dimension counts as active (AU) if its mean μ_i varies over the texts with a variance of at least {ACTIVE:g}."
    )
    others = {name: points for name, points in found.items() if name != AUTOENCODER}
    top = {name: max(high for *_, high in points) for name, points in found.items()}
    apart = bool(others) and top.get(AUTOENCODER, 0.0) > MUCH_GREATER * max(top[name] for name in others)
    names = list(others if apart else found)
    for group in [some(names, LINES), *([[AUTOENCODER]] if apart else [])]:
        seeds = several_seeds(row for row in settings(result) if row["name"] in group)
        page.band(
            {label(name): found[name] for name in group},
            x="dimension, the greatest first",
            y="KL, nats",
            caption=("KL by dimension" if group != [AUTOENCODER] else "KL by dimension of the autoencoder without KL")
            + (": median over seeds, least to greatest" if seeds else "")
            + (
                f"; {len(group)} of {len(names)} settings" if group != [AUTOENCODER] and len(group) < len(names) else ""
            ),
        )


def _greatest(rows: Iterable[Row]) -> float:
    return max(float(row["ppl"]) for row in rows)


def _rises(result: Result) -> str:
    """Whether PPL rises with MI over the λ, with the figures that say so."""
    rows = sorted(having(chosen(settings(result)), "ppl", "mi"), key=lambda row: float(row["mi"]))
    if len(rows) < 2:
        return "There is one λ: whether PPL rises with MI over several is not known (-o free_bits=0.1,0.5,1)."
    least, most = rows[0], rows[-1]
    change = "rises" if most["ppl"] > least["ppl"] else "does not rise"
    text = (
        f"It {change} here from the λ with the least MI to that with the most: {label(least['name'])} has MI "
        f"{least['mi']:.2f} nats and PPL {least['ppl']:.2f}, {label(most['name'])} has {most['mi']:.2f} nats and "
        f"{most['ppl']:.2f}."
    )
    every = having(chosen(result.tables.get("trained", [])), "ppl", "mi")
    ranked = _rank_correlation([row["mi"] for row in every], [row["ppl"] for row in every])
    if ranked is None or len(every) < 4:
        return text
    over = f" Over all {len(every)} trainings with a λ the rank correlation of PPL and MI is {written(ranked)}."
    return text + over


def _by_control(page: Page, rows: Sequence[Row], bound: float, controlled: bool) -> None:
    unused = [row for row in rows if row["name"] != COLLAPSED and row["delta_rec"] <= bound]
    if unused:
        which = ", ".join(label(row["name"]) for row in unused)
        than = f"the control's or {USED:g} nats" if controlled else f"{USED:g} nats"
        page.note(f"ΔRec is no greater than {than} with {which}: that z is used there is not shown.")


def _sorted(rows: Iterable[Row]) -> list[tuple[int, float, float, float]]:
    """The KL of the greatest, second greatest, … dimension: its rank, and median, least and greatest over seeds."""
    seeds: dict[object, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(float(row["kl"]))
    ranks = zip(*(sorted(each, reverse=True) for each in seeds.values()), strict=False)
    return [(rank, median(values), min(values), max(values)) for rank, values in enumerate(ranks, 1)]


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's ρ; equal figures share their mean rank. None where all are equal, or there is one."""
    try:
        return correlation(_ranks(first), _ranks(second))
    except StatisticsError:
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def _padded(low: float, high: float) -> list[float]:
    room = 0.08 * (high - low) or 0.1 * high
    return [low - room, high + room]
