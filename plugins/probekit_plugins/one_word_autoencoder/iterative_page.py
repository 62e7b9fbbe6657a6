"""The iterative part of the page: vectors as a memory of segments that were read one after the other."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions

# How the ways are called on the page, in their order.
WAYS = ("memory", "another text's memory", "truncation", "no memory")
AS_IT_WAS = ("truncation, as it was", "no memory, as it was", "whole context, as it was")


def draw_iterative(result: Result, page: Page, options: OneWordAutoencoderOptions) -> None:
    """What the vectors before a segment are worth to it, if texts were read in segments."""
    rows = result.tables.get("memory", [])
    if options.segment is None or not rows:
        return
    page.heading("Segment after segment")
    size = options.segment
    page.prose(
        f"Texts were read in segments of {size} token{'' if size == 1 else 's'}, E_t = Embed(E_{{t−1}}, segment_t), "
        "and decoded whole from the last E. The vectors never grow, so that they are also a memory of a context of any "
        "length. What it is worth: the likelihood of each next segment given the vectors before it, against truncation "
        "(the last tokens before it, as many as there are vectors, which take as many positions) and against no memory."
    )
    settings = list(dict.fromkeys(str(row["setting"]) for row in rows))
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        for way in (*WAYS, *AS_IT_WAS):
            value = row[way]
            if isinstance(value, int | float):
                found.setdefault((str(row["setting"]), int(str(row["segment"])), way), []).append(float(value))
    segments = sorted({number for _, number, _ in found})
    table = [
        [setting, number, *(_shown(found.get((setting, number, way), [])) for way in (*WAYS, *AS_IT_WAS))]
        for setting in settings
        for number in segments
    ]
    page.table(
        ["setting", "segment", *WAYS, *(f"{way.partition(',')[0]}*" for way in AS_IT_WAS)],
        table,
        caption="Nats a token of the next segment: median over seeds (least–greatest)",
        remark="Columns with * are the model as it was before training, the others what decodes here. The memory of "
        "another text is the control: it must not be as good."
        + ("" if options.continuation else " The next segment was not trained (continuation=0)."),
    )
    for setting in settings:
        if len(segments) > 1:
            page.band(
                {
                    way: [
                        (str(number), median(values), min(values), max(values))
                        for number in segments
                        if (values := found.get((setting, number, way)))
                    ]
                    for way in (*WAYS, AS_IT_WAS[-1])
                },
                x="segment",
                y="nats a token",
                caption=f"The next segment given what came before: {setting}",
            )


def _shown(values: list[float]) -> str | None:
    if not values:
        return None
    middle, least, greatest = (f"{value:.3f}" for value in (median(values), min(values), max(values)))
    return middle if least == greatest else f"{middle} ({least}–{greatest})"
