"""The page of the one-word autoencoder: what comes back of a text, and what that depends on."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow
from probekit_plugins.one_word_autoencoder.iterative_page import draw_iterative
from probekit_plugins.one_word_autoencoder.summary import percent, tokens_of

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions

Row = Mapping[str, Any]
# Settings that have a heatmap of their own.
HEATMAPS = 4
MARKS = {"right": "the text's own token", "wrong": "another token"}


def draw(result: Result, page: Page, options: OneWordAutoencoderOptions) -> None:
    """Every part that the result has figures for."""
    _method(result, page, options)
    _settings(result, page)
    _texts(result, page)
    _by(result, page)
    draw_iterative(result, page, options)
    _cosines(result, page, options)
    _trainings(result, page)


def _method(result: Result, page: Page, options: OneWordAutoencoderOptions) -> None:
    figures = result.metrics
    several = len(options.vectors) > 1
    count = " or ".join(map(str, sorted(options.vectors)))
    one = options.vectors == [1]
    what = "one vector" if one else f"{count} vectors"
    page.prose(
        f"Does a whole text go into {'so few vectors' if several else what}, {'' if one else 'each '}as wide as the "
        "embedding of one token, and come out again word for word? A copy of the model reads the text and, behind it, "
        f"{what} of its own that {'asks' if one else 'ask'} for the answer; the state there, at {figures['site']}, "
        "goes through a LayerNorm and a linear map. What comes out stands in the place of token embeddings, and from "
        "it alone the text is decoded, token by token, each the likeliest (greedy)."
    )
    decoder = (
        "The same copy encodes and decodes, trained in full."
        if options.training == "full"
        else f"The copy that encodes has LoRA adapters of rank {options.rank}; the model as it was decodes."
    )
    often = "once" if options.seeds == 1 else f"{options.seeds} times (seeds)"
    page.prose(
        f"{decoder} Each setting was trained {often} on {figures['texts']} texts, {options.steps} steps of "
        f"{options.batch} texts each, to make L₂ = −(1/N) Σ log p(text_i | E, text_<i) small. Figures are measured on "
        f"{figures['texts_held_out']} other texts of {tokens_of(result)}, whose "
        f"median surprisal under the model, as it was before, is {figures['bits_median']:.0f} bits "
        f"({figures['nats_per_token']:.2f} nats a token)."
    )


def _settings(result: Result, page: Page) -> None:
    rows = result.tables["settings"]
    over = ": median over seeds (least–greatest)" if any(row["seeds"] != 1 for row in rows) else ""
    page.table(
        ["setting", "exact", "tokens right", "exact, from another text's", "exact, before training"],
        [[row["setting"], *(percent(dict(row), name) for name in SHARES)] for row in rows],
        caption=f"Texts that come back exactly, first token included, over all that were held out{over}",
        in_summary=True,
        remark="Two columns are controls and have to be near 0 %: decoding from the vectors of another text, and "
        "before training.",
    )
    page.table(
        ["setting", "NLL", "NLL, another text's", "mean cosine", "coding rate"],
        [[row["setting"], *(_spread(row, name, digits) for name, digits in FIGURES.items())] for row in rows],
        caption=f"How surely they are decoded, and how the vectors lie{over}",
        remark="NLL is in nats a token, given the tokens before. The mean cosine is that of the vectors of two texts, "
        "1 where all are the same; the coding rate is in nats, greater where they fill more directions.",
    )


SHARES = ("exact", "token_accuracy", "exact_shuffled", "exact_untrained")
OF_A_TRAINING = ("exact", "token_accuracy", "nll", "cosine", "cosine_untrained")
FIGURES = {"nll": ".3f", "nll_shuffled": ".2f", "cosine": ".3f", "coding_rate": ".1f"}


def _texts(result: Result, page: Page) -> None:
    """Some texts and, below each, what came back: of the best setting, and folded of the others."""
    originals, found = result.sequences.get("texts", []), result.sequences.get("reconstructions", [])
    if not found:
        return
    page.heading("Texts and what came back of them")
    ranked = sorted(
        result.tables["settings"], key=lambda row: (-_number(row["exact"]), -_number(row["token_accuracy"]))
    )
    for place, setting in enumerate(row["setting"] for row in ranked):
        rows: list[TokenRow] = []
        for original, back in zip(originals, found, strict=True):
            if original.labels["setting"] != setting:
                continue
            exact = original.ids == back.ids
            rows.append(TokenRow(f"text {original.labels['text']}", [Token(text) for text in original.tokens]))
            rows.append(
                TokenRow(
                    "came back",
                    [
                        Token(text, "right" if original.ids[at : at + 1] == [index] else "wrong")
                        for at, (index, text) in enumerate(zip(back.ids, back.tokens, strict=True))
                    ],
                    "exact" if exact else "",
                )
            )
        page.tokens(
            rows,
            caption=f"{setting}, first seed: held-out texts, evenly spread, and below each what was decoded",
            collapsed=place > 0,
            align=False,
            marks=MARKS,
        )


def _by(result: Result, page: Page) -> None:
    page.heading("What that depends on")
    for table, unit, caption, said in (
        (
            "by_length",
            "tokens",
            "Exact matches by the length of the text",
            "A vector holds so many numbers whatever the text: longer ones come back less often.",
        ),
        (
            "by_surprisal",
            "bits",
            "Exact matches by the text's surprisal under the model, −log₂ p",
            "What has to be kept is not tokens but what the model does not know already: a text of 100 bits is one of "
            "2¹⁰⁰ equally likely ones. Lossless is a statement about bits.",
        ),
    ):
        rows = result.tables.get(table, [])
        series: dict[str, list[tuple[float, float, float, float]]] = {}
        for setting in dict.fromkeys(str(row["setting"]) for row in rows):
            groups: dict[float, list[float]] = {}
            for row in rows:
                if row["setting"] == setting:
                    middle = (_number(row["least"]) + _number(row["greatest"])) / 2
                    groups.setdefault(middle, []).append(_number(row["exact"]))
            series[setting] = [(at, median(found), min(found), max(found)) for at, found in sorted(groups.items())]
        if max((len(points) for points in series.values()), default=0) > 1:
            page.prose(said)
            page.band(series, x=unit, y="exact", caption=f"{caption}: median over seeds, least to greatest")
        page.table(
            ["setting", "seed", unit, "texts", "exact"],
            [
                [row["setting"], row["seed"], _between(row), row["texts"], f"{_number(row['exact']):.3f}"]
                for row in rows
            ],
            caption=f"{caption}, of every training",
            collapsed=True,
        )


def _cosines(result: Result, page: Page, options: OneWordAutoencoderOptions) -> None:
    names = [str(row["setting"]) for row in result.tables["settings"] if f"cosines/{row['setting']}" in result.tensors]
    if not names:
        return
    page.heading("How the vectors lie")
    page.prose(
        "The cosine of the vectors of two texts: near 1 everywhere, all texts are the same to whoever searches or "
        "compares by them. A repulsion is there to spread them; it may cost exact matches, or not."
        + (
            f" It was added to the loss with weight {options.repulsion_weight:g}"
            + (", both at once." if options.losses == "summed" else ", in every other step in place of L₂.")
            if options.repulsion != ["none"]
            else " None was trained here: -o repulsion=none,info-nce,coding-rate compares."
        )
    )
    for name in names[:HEATMAPS]:
        values = result.tensors[f"cosines/{name}"]
        labels = list(range(len(values)))
        page.heatmap(
            values.tolist(),
            labels,
            labels,
            x="text",
            y="text",
            value="cosine",
            caption=f"Cosines of the vectors of {len(values)} held-out texts: {name}, first seed",
            domain=(-1.0, 1.0),
        )


def _trainings(result: Result, page: Page) -> None:
    page.heading("The trainings")
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    losses = result.tables["losses"]
    for setting in dict.fromkeys(str(row["setting"]) for row in losses):
        steps: dict[float, list[float]] = {}
        for row in losses:
            if row["setting"] == setting:
                steps.setdefault(_number(row["step"]), []).append(_number(row["loss"]))
        series[setting] = [(step, median(found), min(found), max(found)) for step, found in sorted(steps.items())]
    page.band(series, y="loss, nats", caption="The loss over the steps: median over seeds, least to greatest")
    page.table(
        ["setting", "seed", "parameters", "steps", "exact", "tokens right", "NLL", "mean cosine", "before", "seconds"],
        [
            [
                *(row[name] for name in ("setting", "seed", "parameters", "steps")),
                *(
                    f"{_number(row[name]):.3f}"
                    for name in ("exact", "token_accuracy", "nll", "cosine", "cosine_untrained")
                ),
                result.seconds.get(f"training {row['setting']}, seed {row['seed']}"),
            ]
            for row in result.tables["trained"]
        ],
        caption="Every training",
        collapsed=len(result.tables["trained"]) > 8,
        remark="Parameters are those that were trained; “before” is the mean cosine before training.",
    )


def _spread(row: Row, name: str, digits: str) -> str:
    middle, least, greatest = (f"{_number(row[part]):{digits}}" for part in (name, f"{name}_least", f"{name}_greatest"))
    between = " to " if least.startswith("-") else "–"
    return (middle if least == greatest else f"{middle} ({least}{between}{greatest})").replace("-", "−")


def _between(row: Row) -> str:
    least, greatest = (f"{_number(row[name]):.3g}" for name in ("least", "greatest"))
    return least if least == greatest else f"{least}–{greatest}"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
