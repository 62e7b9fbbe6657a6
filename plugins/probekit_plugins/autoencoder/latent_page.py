"""What dense codes are like: the posterior of a variational one, and labels in any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit_plugins.autoencoder.page_figures import (
    DATUM,
    Row,
    charted,
    number,
    of_site,
    range_of,
    settings_table,
    settings_with,
    short,
    spread,
)

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.autoencoder import AutoencoderOptions

# Variance of its mean from which on a dimension counts as active, as in `figures`, which needs torch.
ACTIVE = 0.01
# Dimensions of a code that have a bar, at most.
BARS = 96
# Labels that have a colour of their own; the others share one.
COLOURED = 7
OTHERS = "all others"
_TOP = {"orient": "top", "title": None, "columns": 4}


def draw_variational(result: Result, page: Page) -> None:
    """How much each dimension says, how many are in use, and how near the codes of all examples are to N(0, I)."""
    rows = settings_with(result, "kl", "active_units", "aggregate_kl")
    if not rows:
        return
    page.heading("Variational codes: dimensions in use")
    page.prose(
        "A variational encoder gives, for each activation, a normal distribution of codes, and pays in nats for how "
        "far that is from N(0, 1) in each dimension: the KL divergence. A dimension of 0 nats says nothing of its "
        "activation. It counts as active if its mean varies over activations with a variance of at least "
        f"{ACTIVE:g}. The noise variance σ² sets the price: a dimension that would lower the error by less is "
        "given up (-o noise_variance=…).\n\n"
        "The aggregate posterior is what codes of all activations together are like. A decoder can be fed from "
        "N(0, I) only where that is near it: mean 0 and variance 1 in every dimension, 0 nats away."
    )
    settings_table(
        page,
        rows,
        {
            "width": [row.get("code") for row in rows],
            "active units": [spread(row, "active_units", ".3g") for row in rows],
            "KL, nats an activation": [spread(row, "kl", ".3g") for row in rows],
            "aggregate from N(0, I), nats": [spread(row, "aggregate_kl", ".3g") for row in rows],
        },
        caption="Variational codes on held-out activations",
    )
    for at, settings in charted(rows):
        _active(page, settings, at)
        site = str(settings[0]["site"])
        widest = max(settings, key=lambda row: number(row.get("code")) or 0)
        name = f"{widest['setting']}-seed0"
        dimensions = [row for row in of_site(result, "dimensions", site) if row["name"] == name]
        if dimensions:
            _dimensions(page, dimensions, f"{widest['setting']}{at}, first seed")


def _active(page: Page, rows: Sequence[Row], at: str) -> None:
    known = [(row["code"], range_of(row, "active_units")) for row in rows if row.get("code") is not None]
    points = [(width, *found) for width, found in known if found is not None]
    if len(points) > 1 and any(low < width for width, _, low, _ in points):  # else the table says it
        page.band(
            {"active": points, "all there are": [(width, width, width, width) for width, *_ in points]},
            x="width of the code",
            y="dimensions",
            caption=f"Active units{at}, by width",
        )


def _dimensions(page: Page, rows: Sequence[Row], which: str) -> None:
    ordered = sorted(rows, key=lambda row: -(number(row["kl"]) or 0))[:BARS]
    some = f"; the {BARS} strongest of {len(rows)} dimensions" if len(rows) > BARS else ""
    places = [str(row["dimension"]) for row in ordered]
    x = {
        "field": "dimension",
        "type": "nominal",
        "sort": places,
        "title": "dimension, the strongest first",
        "axis": {"labelAngle": 0, "labelOverlap": True, "ticks": False},
    }
    page.chart(
        {
            "data": {
                "values": [
                    {
                        "dimension": str(row["dimension"]),
                        "KL": row["kl"],
                        "is": "active" if (number(row.get("variance_of_means")) or 0) >= ACTIVE else "not active",
                    }
                    for row in ordered
                ]
            },
            "height": 200,
            "mark": {"type": "bar", "tooltip": DATUM},
            "encoding": {
                "x": x,
                "y": {"field": "KL", "type": "quantitative", "title": "KL from N(0, 1), nats"},
                "color": {
                    "field": "is",
                    "type": "nominal",
                    "scale": {"domain": ["active", "not active"]},
                    "legend": _TOP,
                },
            },
        },
        caption=f"What each dimension of {which}, says of an activation{some}",
    )
    parts = ("mean", "variance")
    page.chart(
        {
            "data": {
                "values": [
                    {"dimension": str(row["dimension"]), "of the aggregate": part, "figure": row[part]}
                    for row in ordered
                    for part in parts
                ]
            },
            "height": 200,
            "layer": [
                {
                    "mark": {"type": "point", "filled": True, "size": 40, "tooltip": DATUM},
                    "encoding": {
                        "x": x,
                        "y": {"field": "figure", "type": "quantitative", "title": "mean, variance"},
                        "color": {
                            "field": "of the aggregate",
                            "type": "nominal",
                            "scale": {"domain": list(parts)},
                            "legend": _TOP,
                        },
                    },
                },
                *(
                    {
                        "mark": {"type": "rule", "strokeDash": [5, 4]},
                        "encoding": {"y": {"datum": wanted}, "color": {"datum": part}},
                    }
                    for part, wanted in zip(parts, (0, 1), strict=True)
                ),
            ],
        },
        caption=f"The aggregate posterior of {which}; broken lines: N(0, 1), mean 0 and variance 1{some}",
    )


def draw_labels(result: Result, page: Page, options: AutoencoderOptions) -> None:
    """Where activations lie in a code, coloured by their labels, and whether clusters of codes are the labels."""
    rows = settings_with(result, "agreement")
    scatter = result.tables.get("scatter", [])
    if not rows and not scatter:
        return
    page.heading("Where activations lie in a code")
    if rows:
        supervised = any(row["variant"] == "contrastive" for row in rows)
        page.prose(
            f"Each held-out activation has a label ({options.labels}). Codes are divided into as many clusters as "
            "there are labels (k-means, which does not see the labels), and the two divisions are compared. Adjusted "
            "mutual information is 1 if they are the same, and 0 if they agree no more than by chance. It counts the "
            "most frequent labels only, 20 at most."
            + (
                " The contrastive codes were trained with these labels: theirs says that training worked, and not what "
                "the layer holds by itself."
                if supervised
                else ""
            )
        )
        settings_table(
            page,
            rows,
            {"agreement (AMI)": [spread(row, "agreement") for row in rows]},
            caption="Agreement of clusters of codes with the labels",
        )
    for at, of_one_site in charted(scatter):
        names = list(dict.fromkeys(str(row["name"]) for row in of_one_site))
        for name in _widest(result, str(of_one_site[0]["site"]), names):
            _scatter(page, [row for row in of_one_site if row["name"] == name], name.removesuffix("-seed0") + at)


def _widest(result: Result, site: str, names: Sequence[str]) -> list[str]:
    """Of each variant the training with the widest code."""
    best: dict[object, tuple[float, str]] = {}
    for row in of_site(result, "trained", site):
        width = number(row.get("size")) or 0.0
        if row["name"] in names and width >= best.get(row["variant"], (0.0, ""))[0]:
            best[row["variant"]] = (width, str(row["name"]))
    return [name for _, name in best.values()]


def _scatter(page: Page, rows: Sequence[Row], which: str) -> None:
    texts = [_shown(short(str(row.get("label") or ""))) for row in rows]
    labelled = any(row.get("label") for row in rows)
    often = [text for text, _ in Counter(texts).most_common(COLOURED)]
    kinds = [*often, OTHERS] if len(set(texts)) > COLOURED else often
    axis = {"type": "quantitative", "scale": {"zero": False}, "axis": {"grid": False}}
    colour = {"field": "colour", "type": "nominal", "scale": {"domain": kinds}, "legend": _TOP}
    page.chart(
        {
            "data": {
                "values": [
                    {"x": row["x"], "y": row["y"]}
                    | ({"label": text, "colour": text if text in often else OTHERS} if labelled else {})
                    for row, text in zip(rows, texts, strict=True)
                ]
            },
            "height": 340,
            "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.7, "tooltip": DATUM},
            "encoding": {
                "x": {"field": "x", "title": "first principal direction of the codes", **axis},
                "y": {"field": "y", "title": "second", **axis},
                **({"color": colour} if labelled else {}),
            },
        },
        caption=f"Codes of {len(rows)} held-out activations, {which}: the plane in which they vary most"
        + (", coloured by label" if labelled else ""),
    )


def _shown(label: str) -> str:
    """A label in a key: what would not be seen at its ends is made visible, as tokens are elsewhere."""
    inner = label.strip(" ")
    start, end = len(label) - len(label.lstrip(" ")), len(label) - len(label.rstrip(" "))
    if not inner:
        return "·" * len(label) or "∅"
    return ("·" * start + inner + "·" * end).replace("\n", "↵").replace("\t", "⇥")
