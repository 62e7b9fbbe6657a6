"""Features of sparse codes: how often they are active, and in which contexts the most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.autoencoder.page_figures import (
    DATUM,
    LINES,
    Row,
    charted,
    named,
    number,
    settings_table,
    settings_with,
    short,
    sites_of,
    some,
    spread,
)

if TYPE_CHECKING:
    from probekit import Page, Result

LEGEND = "activation, relative to the feature's greatest"


def draw_sparse(result: Result, page: Page) -> None:
    """Dead features, a histogram of densities, and the features of each setting."""
    rows = settings_with(result, "l0", "dead")
    density = result.tables.get("density", [])
    if not rows and not density:
        return
    page.heading("Sparse codes: features and how often they are active")
    page.prose(
        "A sparse code has many more entries than the activation, its features, but few of them are active (not zero) "
        "at a token. L0 is how many are active at once, on average over held-out tokens. A feature's density is the "
        "share of the training tokens at which it is active. A dead one is active at none: it is capacity that is "
        "paid for and not used. Features above a density of 0.1 are active too often to stand for one thing; most "
        "that can be read lie between 10⁻⁴ and 10⁻²."
    )
    if rows:
        settings_table(
            page,
            rows,
            {
                "features": [row.get("code") for row in rows],
                "L0": [spread(row, "l0", ".3g") for row in rows],
                "dead": [spread(row, "dead") for row in rows],
                "FVE": [spread(row, "fve") for row in rows],
            },
            caption="Sparse codes; dead is a share of the features",
        )
    for at, of_site in charted(density):
        _densities(page, of_site, at)
    _features(result, page)


def _densities(page: Page, rows: Sequence[Row], at: str) -> None:
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    chosen = some(names, LINES)
    values = [
        {
            "setting": str(row["name"]).removesuffix("-seed0"),
            "density": 10 ** ((float(row["from"]) + float(row["to"])) / 2),
            "features": row["features"],
        }
        for row in rows
        if row["name"] in chosen
    ]
    settings = list(dict.fromkeys(str(value["setting"]) for value in values))
    page.chart(
        {
            "data": {"values": values},
            "height": 240,
            "mark": {"type": "line", "interpolate": "step", "tooltip": DATUM},
            "encoding": {
                "x": {
                    "field": "density",
                    "type": "quantitative",
                    "title": "density: share of the tokens at which a feature is active",
                    "scale": {"type": "log", "domain": [1e-5, 1]},
                    "axis": {"grid": False, "values": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], "format": "~g"},
                },
                "y": {"field": "features", "type": "quantitative", "title": "features"},
                "color": {
                    "field": "setting",
                    "type": "nominal",
                    "scale": {"domain": settings},
                    "legend": {"title": None, "orient": "top", "columns": 4} if len(settings) > 1 else None,
                },
            },
        },
        caption=f"How often features are active{at}: how many have which density, first seed; dead ones are left out"
        + (f"; {len(settings)} of {len(names)} settings" if len(settings) < len(names) else ""),
    )


def _features(result: Result, page: Page) -> None:
    rows = result.tables.get("features", [])
    several = len(sites_of(rows)) > 1
    trainings = list(dict.fromkeys((str(row["site"]), str(row["name"])) for row in rows))
    for index, (site, name) in enumerate(trainings):
        own = [row for row in rows if (row["site"], row["name"]) == (site, name)]
        shown = named({"site": site, "setting": name.removesuffix("-seed0")}, several)
        page.heading(f"Features of {shown}")
        drawn = sum(bool(row.get("drawn")) for row in own)
        if not index:
            page.prose(
                "To see what a feature stands for, read the contexts in which it is most active: up to five held-out "
                "documents, the strongest first, around the token at which it is the most active there. The colour is "
                "the activation at each token, relative to the feature's greatest. The features shown are those with "
                "the greatest sum of squared activations; those marked as drawn were picked at random among all "
                "others that are active, so that the strongest do not speak for all. Contexts that are the strongest "
                "show a feature at its clearest: at lower activations it may mean something else."
            )
        page.table(
            ["feature", "shown because", "density", "greatest activation", "most active at"],
            [
                [
                    row["feature"],
                    "drawn at random" if row.get("drawn") else "strong",
                    _short(row.get("density")),
                    _short(row.get("greatest")),
                    _peaks(_contexts(result, row)),
                ]
                for row in own
            ],
            caption=f"The {len(own) - drawn} strongest features of {shown}"
            + (f", and {drawn} drawn at random" if drawn else "")
            + " (first seed)",
            interactive=True,
            collapsed=index > 0,
        )
        if not index:
            for row in own:
                page.tokens(
                    _rows(result, row, "document {document}"), caption=_caption(row), legend=LEGEND, align=False
                )
            continue
        every = [line for row in own for line in _rows(result, row, "feature {feature}, document {document}")]
        page.tokens(every, caption="Contexts of these features", legend=LEGEND, align=False, collapsed=True)


def _short(value: object) -> float | None:
    found = number(value)
    return None if found is None else float(f"{found:.3g}")


def _contexts(result: Result, row: Row) -> list[TokenSequence]:
    found = [
        each
        for each in result.sequences.get("contexts", [])
        if all(each.labels.get(key) == row[key] for key in ("site", "name", "feature"))
    ]
    return sorted(found, key=lambda each: int(each.labels.get("rank") or 0))


def _peaks(contexts: Sequence[TokenSequence]) -> str:
    """The tokens at which a feature is most active, each once."""
    peaks = [each.tokens[int(each.labels.get("peak") or 0)] for each in contexts if each.tokens]
    return "  ".join(dict.fromkeys(f"“{short(text)}”".replace("\n", "↵") for text in peaks))


def _rows(result: Result, row: Row, label: str) -> list[TokenRow]:
    """The contexts of a feature, coloured by its activation; a row that is labelled by what the label names."""
    greatest = number(row.get("greatest")) or 1.0
    rows = []
    for each in _contexts(result, row):
        key = f"contexts/{row['site']}/{row['name']}/{row['feature']}/{each.labels.get('rank')}"
        found: Any = result.tensors.get(key)
        values = [0.0] * len(each.tokens) if found is None else [float(value) for value in found]
        tokens = [
            Token(
                text,
                value=min(max(value / greatest, 0.0), 1.0) if value > 0 else None,
                title=f"activation {value:.3g}" if value > 0 else "",
            )
            for text, value in zip(each.tokens, values, strict=False)
        ]
        about = label.format(feature=row["feature"], document=each.labels.get("document"))
        rows.append(TokenRow(about, tokens, note=f"{max(values, default=0):.3g}"))
    return rows


def _caption(row: Row) -> str:
    density, greatest = number(row.get("density")), number(row.get("greatest"))
    return (
        f"Feature {row['feature']}"
        + (" (drawn at random)" if row.get("drawn") else "")
        + (f": active at {100 * density:.3g} % of the tokens" if density is not None else "")
        + (f", at most {greatest:.3g}" if greatest is not None else "")
    )
