"""The page of the decoders: round trips through the vocabulary, then the lens over each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.pseudo_inverse.figures import WEAKEST

if TYPE_CHECKING:
    from probekit import Page, Result

BINS = 40


def draw(result: Result, page: Page) -> None:
    decoders = list(
        dict.fromkeys(str(row["decoder"]) for row in result.tables.get("lens", result.tables.get("weakest", [])))
    )
    if "weakest" in result.tables:
        _margins(result, page, [name for name in decoders if f"{name}/round_trip_rate" in result.metrics])
    for sequence in result.sequences["prompt"]:
        _lens(result, page, sequence, decoders)


def _margins(result: Result, page: Page, decoders: Sequence[str]) -> None:
    page.heading("The whole vocabulary")
    page.prose(
        "Each token's own embedding is decoded. The margin is its score less that of the strongest other token: "
        "positive if the token decodes to itself. Scores of different decoders have different units, so margins "
        "compare within one decoder."
    )
    page.table(
        ["decoder", "decode to themselves", "ties", "median margin", "least margin"],
        [
            [
                name,
                *(
                    result.metrics[f"{name}/{figure}"]
                    for figure in ("round_trip_rate", "ties", "margin_median", "margin_min")
                ),
            ]
            for name in decoders
        ],
        caption="Round trips through the vocabulary",
    )
    for name in decoders:
        page.chart(
            _histogram(result.tensors[f"margins/{name}"]),
            caption=f"Margins of the {name} decoder over the vocabulary",
        )
    columns = list(result.tables["weakest"][0])
    page.table(
        columns,
        [[row[column] for column in columns] for row in result.tables["weakest"]],
        caption=f"The {WEAKEST} least margins of each decoder",
        collapsed=True,
    )
    if "disagreement" in result.tables:
        columns = list(result.tables["disagreement"][0])
        page.table(
            columns,
            [[row[column] for column in columns] for row in result.tables["disagreement"]],
            caption="Where decoders disagree on a token's own embedding",
        )


def _lens(result: Result, page: Page, prompt: TokenSequence, decoders: Sequence[str]) -> None:
    number = prompt.labels["prompt"]
    rows = [row for row in result.tables.get("lens", []) if row["prompt"] == number]
    if not rows:
        return
    sites = list(dict.fromkeys(str(row["site"]) for row in rows))
    page.heading(f"The lens over prompt {int(number or 0) + 1}")
    for figure, meaning in (("own token", "token that stands there"), ("next token", "next token")):
        if any(row[figure] is not None for row in rows):
            by_place = {(row["site"], row["decoder"]): row[figure] for row in rows}
            page.heatmap(
                [[_number(by_place[site, name]) for name in decoders] for site in sites],
                x_labels=list(decoders),
                y_labels=sites,
                x="decoder",
                y="site",
                value="share of positions",
                caption=f"Where the first choice is the {meaning}",
                domain=(0.0, 1.0),
            )
    for name in decoders:
        found = [
            sequence
            for sequence in result.sequences["lens"]
            if sequence.labels["prompt"] == number and sequence.labels["decoder"] == name
        ]
        page.tokens(
            [
                TokenRow("prompt", [Token(text) for text in prompt.tokens]),
                *(TokenRow(site, _lens_row(found, site, prompt)) for site in sites),
            ],
            caption=f"First choice of the {name} decoder by site",
            legend="marked where it is the token that stands there; the other candidates are in the hover text",
        )


def _lens_row(found: Sequence[TokenSequence], site: str, prompt: TokenSequence) -> list[Token]:
    ranked = sorted((s for s in found if s.labels["site"] == site), key=lambda s: int(s.labels["rank"] or 0))
    return [
        Token(
            ranked[0].tokens[position],
            mark="right" if ranked[0].ids[position] == prompt.ids[position] else None,
            title="  ".join(f"{rank + 1}. {sequence.tokens[position]!r}" for rank, sequence in enumerate(ranked)),
        )
        for position in range(len(prompt.ids))
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _histogram(margins: object) -> dict[str, object]:
    import numpy

    counts, edges = numpy.histogram(numpy.asarray(margins), bins=BINS)
    values = [
        {"from": float(low), "to": float(high), "tokens": int(count)}
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "bar", "tooltip": True},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "title": "margin", "bin": {"binned": True}},
            "x2": {"field": "to"},
            "y": {"field": "tokens", "type": "quantitative", "title": "tokens"},
        },
        "height": 140,
    }
