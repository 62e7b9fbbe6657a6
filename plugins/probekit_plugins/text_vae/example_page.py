"""What is written from z: texts again, samples from the prior, interpolations, analogies."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from probekit import Token, TokenRow
from probekit_plugins.autoencoder.page_figures import number
from probekit_plugins.text_vae.page_figures import OPEN, Row, by_name, label, setting, short, shortened, written

if TYPE_CHECKING:
    from probekit import Page, Result


def draw_examples(result: Result, page: Page) -> None:
    """Each kind that the result has; all are of the first seed."""
    _reconstructions(page, result.tables.get("reconstructions", []))
    _samples(page, result.tables.get("samples", []))
    _interpolations(result, page)
    _analogies(page, result.tables.get("analogies", []))


def _reconstructions(page: Page, rows: Sequence[Row]) -> None:
    if not rows:
        return
    page.heading("Texts written again")
    page.prose(
        "Held-out texts, and what each setting writes greedily from the mean of q(z | x), of the first seed. A "
        "sentence of much the same words for every text is what a decoder writes that does not read z."
    )
    settings = by_name(rows)
    for place in range(max(map(len, settings.values()))):
        own = {name: rows[place] for name, rows in settings.items() if place < len(rows)}
        text = shortened(next(iter(own.values()))["text"])
        page.tokens(
            [
                TokenRow("the text", [Token(word) for word in text.split()]),
                *(_marked(short(name), text, row) for name, row in own.items()),
            ],
            caption=f"Text {place + 1}",
            collapsed=place >= OPEN,
            align=False,
            marks={"right": "a word of the text, in its order", "wrong": "another word"},
        )


def _marked(name: str, text: str, row: Row) -> TokenRow:
    own, words = text.split(), shortened(row["written"]).split()
    kept: set[int] = set()
    for block in SequenceMatcher(None, own, words, autojunk=False).get_matching_blocks():
        kept.update(range(block.b, block.b + block.size))
    if not str(row["written"]).strip():
        return TokenRow(name, [], "nothing")
    note = "exact" if row["exact"] else f"{len(kept)} of {len(own)} words"
    tokens = [Token(word, mark="right" if place in kept else "wrong") for place, word in enumerate(words)]
    return TokenRow(name, tokens, note)


def _samples(page: Page, rows: Sequence[Row]) -> None:
    if not rows:
        return
    page.heading("Samples from the prior")
    page.prose(
        "z is drawn from N(0, I); the decoder writes from it greedily, and once more by sampling each token. Where the "
        "z of texts are far from N(0, I), what is written from the prior is not like any text."
    )
    page.table(
        ["setting", "greedy", "sampled"],
        [[label(row["name"]), shortened(row["greedy"]), shortened(row["sampled"])] for row in rows],
        caption="Written from z of N(0, I): the greedy and the sampled text of a row are of the same z",
        interactive=len(rows) > 20,
    )


def _interpolations(result: Result, page: Page) -> None:
    rows = result.tables.get("interpolations", [])
    if not rows:
        return
    page.heading("From one text to another")
    page.prose(
        "Greedily written from z₁ + t (z₂ − z₁), z₁ and z₂ the means of two texts. Text that stays the same for all t "
        "is that of a z that is not used, however smooth it looks."
    )
    for place, (name, own) in enumerate(by_name(rows).items()):
        pairs: dict[object, dict[object, Row]] = {}
        for row in own:
            pairs.setdefault(row["pair"], {})[row["t"]] = row
        ways = list(pairs.values())
        starts, ends = ([shortened(next(iter(way.values()))[end]) for way in ways] for end in ("from", "to"))
        steps = list(dict.fromkeys(row["t"] for row in own))
        between = [
            [f"t = {float(t):.3g}", *(shortened(way[t]["written"]) if t in way else None for way in ways)]
            for t in steps
        ]
        page.table(
            ["", *(f"pair {number + 1}" for number in range(len(ways)))],
            [["first text", *starts], *between, ["second text", *ends]],
            caption=f"Interpolations: {short(name)}" + _gap(setting(result, name)),
            collapsed=place >= OPEN,
        )


def _gap(row: Row | None) -> str:
    gap, monotone = (number((row or {}).get(figure)) for figure in ("gap", "monotone"))
    if gap is None or monotone is None:
        return ""
    return f"; over all pairs the end-point gap is {written(gap)} nats, and {monotone:.0%} of them are monotone"


def _analogies(page: Page, rows: Sequence[Row]) -> None:
    if not rows:
        return
    page.heading("Analogies")
    page.prose(
        "As A is to B, so C is to what is written greedily from z_C + (z_B − z_A). The three are held-out texts as "
        "they come, so that there need not be a right answer: what can be seen is whether the text changes with A and "
        "B, and keeps anything of C."
    )
    settings = by_name(rows)
    for place in range(max(map(len, settings.values()))):
        own = {name: rows[place] for name, rows in settings.items() if place < len(rows)}
        first = next(iter(own.values()))
        page.table(
            ["", "text"],
            [
                *([each, shortened(first[each.lower()])] for each in "ABC"),
                *([f"D, {label(name)}", shortened(row["written"])] for name, row in own.items()),
            ],
            caption=f"Analogy {place + 1}, A : B = C : D",
            collapsed=place >= OPEN,
        )
