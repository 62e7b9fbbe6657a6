"""The page's part on texts whose code is known: which are told apart, against chance and the control; the training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from probekit_plugins.control_codes.attribution import BEFORE, SHUFFLED, TUNED

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.control_codes import ControlCodesOptions

Row = dict[str, Any]
# Where a run keeps an analysis's files, beside its report.
FILES = "analyses/control-codes/files"
# Texts that are listed, the least certain first.
LISTED = 200


def draw_known(result: Result, page: Page) -> None:
    """Accuracy, confusion, and NLL by code."""
    rows: list[Row] = list(result.tables["accuracy"])
    chance, texts = rows[0]["chance"], rows[0]["texts"]
    codes = {row["known"] for row in result.tables["by_code"]}
    page.heading("Texts whose code is known")
    page.prose(
        f"{texts} texts"
        + (" that were held out from the fine-tuning" if "losses" in result.tables else "")
        + f", each attributed to the code that it is the likeliest under. Chance, {chance:.3f}, is to name the code of "
        "the most texts always. The probability is p(c|x) ∝ p(x|c) of a text's own code c, the mean over texts, all "
        f"{len(codes)} codes being as likely beforehand: {1 / len(codes):.3f} where codes say nothing. The gap is the "
        "NLL under other codes less that under the own one: 0 there."
        + (
            " With the codes shuffled among the texts, a code says nothing of the text behind it: probability and gap "
            "must be at these. Accuracy then comes from differences next to none, which all texts of a code may share, "
            "so that it may lie far on either side of chance."
            if any(row["model"] == SHUFFLED for row in rows)
            else ""
        )
    )
    page.table(
        [
            "model",
            "seed",
            "right",
            "accuracy",
            "chance",
            "probability",
            "NLL, own code",
            "other codes",
            "gap",
            "margin",
        ],
        [
            [row["model"], None if row["model"] == BEFORE else row["seed"], row["right"]]
            + [round(row[name], 4) for name in ("accuracy", "chance", "probability", "own", "other", "gap", "margin")]
            for row in rows
        ],
        caption=f"Attribution of {texts} texts to their own code; NLL, gap and median margin in nats per token",
        in_summary=True,
    )
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        _draw_model(result, page, model)
    _draw_texts(result, page)


def _draw_model(result: Result, page: Page, model: str) -> None:
    """Confusion and NLL by code, the sum and the median over seeds."""
    confusion: list[Row] = [row for row in result.tables["confusion"] if row["model"] == model]
    means: list[Row] = [row for row in result.tables["by_code"] if row["model"] == model]
    codes = list(dict.fromkeys(str(row["known"]) for row in means))
    seeds = len({row["seed"] for row in means})
    counts = {
        (row["known"], row["attributed"]): sum(
            each["texts"]
            for each in confusion
            if (each["known"], each["attributed"]) == (row["known"], row["attributed"])
        )
        for row in confusion
    }
    columns: list[str | None] = [*codes, *([None] if any(counts[code, None] for code in codes) else [])]
    totals = {code: sum(counts[code, column] for column in columns) for code in codes}
    over = f", over {seeds} seeds" if seeds > 1 else ""
    page.heatmap(
        [[counts[code, column] / totals[code] for column in columns] for code in codes],
        [column or "tied" for column in columns],
        codes,
        x="attributed to",
        y="the text's code",
        value="share of texts",
        caption=f"Confusion, {model}: share of each code's texts that is attributed to each code{over}",
        domain=(0, 1),
    )
    nll = {(known, code): median(_of(means, known, code)) for known in codes for code in codes}
    middle = f", the median over {seeds} seeds" if seeds > 1 else ""
    page.heatmap(
        [[nll[known, code] - nll[known, known] for code in codes] for known in codes],
        codes,
        codes,
        x="under the code",
        y="the text's code",
        value="nats",
        caption=f"How much less likely each code makes texts than their own, {model}: nats per token{middle}",
    )
    page.table(
        ["the text's code", *(f"under {code}" for code in codes)],
        [[known, *(round(nll[known, code], 3) for code in codes)] for known in codes],
        caption=f"NLL, {model}: mean over each code's texts, nats per token{middle}",
        collapsed=True,
    )


def _of(rows: Sequence[Row], known: str, code: str) -> list[float]:
    return [row["nll"] for row in rows if row["known"] == known and row["code"] == code]


def _draw_texts(result: Result, page: Page) -> None:
    every: list[Row] = list(result.tables["texts"])
    models = list(dict.fromkeys(str(row["model"]) for row in every))
    model = TUNED if TUNED in models else models[0]
    rows = [row for row in every if row["model"] == model]

    def certainty(row: Row) -> float:
        margin = float(row["margin"] or 0.0)
        return margin if row["attributed"] == row["known"] else -margin

    page.table(
        ["text", "its code", "attributed to", "margin", "NLL, own code", "NLL, other codes", "tokens"],
        [
            [
                *(row["beginning"], row["known"], row["attributed"] or "tied"),
                *(round(row[name], 3) for name in ("margin", "nll_own", "nll_others")),
                row["tokens"],
            ]
            for row in sorted(rows, key=certainty)[:LISTED]
        ],
        caption=f"{'The' if len(rows) <= LISTED else f'{LISTED} of {len(rows)}'} texts, {model}"
        f"{', first seed' if model != BEFORE else ''}: those that are most surely attributed wrongly come first",
        interactive=True,
        collapsed=True,
    )


def draw_training(result: Result, page: Page, options: ControlCodesOptions) -> None:
    """Loss curves, and what was saved."""
    page.heading("The fine-tuning")
    codes: list[Row] = list(result.tables["codes"])
    trained = sum(row["trained_on"] for row in codes)
    page.prose(
        "Copies of the model were trained on −Σ log p(x_i | x_{<i}, c), the mean over the tokens of a batch; a code's "
        f"own tokens are not learnt. {trained} texts, {min(options.batch, trained)} in a step, AdamW at "
        f"{options.learning_rate:g}, without dropout; each seed is another order of the texts."
        + (
            " The control sees the same texts in the same order, each behind the code of one drawn from all, anew each "
            "time."
            if options.control
            else ""
        )
    )
    curves: dict[str, list[tuple[int, float, float, float]]] = {}
    rows: list[Row] = list(result.tables["losses"])
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        by_step: dict[int, list[float]] = {}
        for row in rows:
            if row["model"] == model:
                by_step.setdefault(row["step"], []).append(row["loss"])
        curves[model] = [(step, median(found), min(found), max(found)) for step, found in sorted(by_step.items())]
    seeds = len({row["seed"] for row in rows})
    page.band(
        curves,
        x="step",
        y="loss, nats per token",
        caption="The loss over the steps" + (f": median over {seeds} seeds, least to greatest" if seeds > 1 else ""),
    )
    if any(name.endswith("config.json") for name in result.files):
        page.prose(
            f"The fine-tuned model of the first seed is kept in {FILES}/fine-tuned beside this report, as a folder "
            "that transformers loads. In the folder of this report:\n\n"
            f"probekit run --model {FILES}/fine-tuned --plugin control-codes"
            + ("" if options.codes is None else " -o codes=FILE")
        )
