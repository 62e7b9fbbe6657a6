"""What a contrastive code tells apart, trained and untrained, beside chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probekit_plugins.autoencoder.page_figures import (
    charted,
    named,
    number,
    over_seeds,
    range_of,
    settings_table,
    settings_with,
    sites_of,
    spread,
)

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.autoencoder import AutoencoderOptions


def draw_contrastive(result: Result, page: Page, options: AutoencoderOptions) -> None:
    """How well one view of an activation finds the other, trained and untrained, beside chance."""
    rows = settings_with(result, "retrieval")
    if not rows:
        return
    views = {
        "dropout": f"the same activation with {options.dropout:.0%} of its entries left out, twice",
        "sites": "the same token at two sites",
        "segments": "the two halves of a document, each as the mean of its activations",
    }[options.views]
    among = {
        (row["site"], str(row["name"]).removesuffix(f"-seed{row['seed']}")): number(row.get("among"))
        for row in result.tables.get("trained", [])
    }
    counts = [among.get((row["site"], str(row["setting"]))) for row in rows]
    chances = [1 / count if count else None for count in counts]
    alike = options.labels is not None
    page.heading("Contrastive codes: what is told apart")
    page.prose(
        f"A contrastive encoder has no decoder. It is trained to give two views of one thing ({views}) codes that are "
        "near one another, and far from those of everything else. All codes have length 1."
        + (
            f" Here examples of one label ({options.labels}) were to be near one another too, which makes it harder "
            "to tell them apart."
            if alike
            else ""
        )
        + "\n\n"
        "Top-1 is the share of held-out examples whose other view is the nearest of all N. Chance is 1/N. An encoder "
        "with random weights is the control, and not a weak one: views share most of what they are made of, so only "
        "what is above it was learnt. Alignment is the mean squared distance of two views: 0 is best. Uniformity is "
        "log E exp(−2 ‖a − b‖²) over pairs of examples: 0 if all codes are one point, and the lower, the more evenly "
        "they fill the sphere (−4 at best)."
    )
    settings_table(
        page,
        rows,
        {
            "top-1": [spread(row, "retrieval") for row in rows],
            "untrained": [spread(row, "retrieval_untrained") for row in rows],
            "chance, 1/N": chances,
            "among N": [None if count is None else int(count) for count in counts],
            "alignment": [spread(row, "alignment") for row in rows],
            "uniformity": [spread(row, "uniformity") for row in rows],
        },
        caption="How well one view finds the other, on held-out examples",
    )
    several = len(sites_of(rows)) > 1
    worse = [
        named(row, several)
        for row in rows
        if (number(row.get("retrieval")) or 0) <= (number(row.get("retrieval_untrained")) or -1)
    ]
    if worse:
        page.note(
            f"Top-1 is no better than untrained for {', '.join(worse)}. "
            + (
                "Examples of one label were trained to have one code, so that they are taken for one another; without "
                "labels, top-1 says what was learnt."
                if alike
                else "Training has moved codes without making this task easier; train for longer (-o steps=…) or make "
                "it harder (-o dropout=…)."
            )
        )
    for at, settings in charted(rows):
        series = {}
        for title, figure in (("trained", "retrieval"), ("untrained", "retrieval_untrained")):
            known: list[tuple[Any, Any]] = [(number(row.get("size")), range_of(row, figure)) for row in settings]
            series[title] = [(width, *found) for width, found in known if width is not None and found is not None]
        count = next((each for each, row in zip(counts, rows, strict=True) if row in settings and each), None)
        if count:
            series["chance"] = [(width, *([1 / count] * 3)) for width, *_ in series["trained"]]
        if len(series["trained"]) > 1:
            page.band(
                {name: line for name, line in series.items() if line},
                x="width of the code",
                y="top-1",
                caption=f"Retrieval{at}, by width" + over_seeds(settings),
            )
