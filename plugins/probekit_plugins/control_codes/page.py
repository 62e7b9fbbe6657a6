"""The page: one prompt under several codes, how likely each makes it, which texts are told apart, and the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.control_codes.attribution import BEFORE
from probekit_plugins.control_codes.codes import NONE
from probekit_plugins.control_codes.known_page import draw_known, draw_training
from probekit_plugins.repeats import seq_rep, times_before

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.control_codes import ControlCodesOptions

Row = dict[str, Any]
FORMS = {
    "unpenalised": "no penalty",
    "corrected": "corrected penalty (x/θ if x > 0, else xθ)",
    "literal": "literal penalty (x/θ)",
}
# Prompts whose texts are shown unfolded, and a token is as dark as it gets where its 4-gram stood so often before.
OPEN, DARKEST = 3, 4
LEGEND = f"tokens of a 4-gram that stood before in the same text; 1 is {DARKEST} times or more"
# Characters of a prompt in a label.
LONGEST = 40


def draw(result: Result, page: Page, options: ControlCodesOptions) -> None:
    """Every part that the result has figures for."""
    page.prose(
        "A control code is a few words before a text that say what kind of text it is, as in CTRL (Keskar et al., "
        "2019). A text's negative log-likelihood (NLL) under a code c is −(1/n) Σ log p(x_i | x_{<i}, c), the mean over"
        " the text's own n tokens, in nats; perplexity (PPL) is its exponential. A text is attributed to the code that "
        "makes it the likeliest. Code and text are cut into tokens separately, so that a text has the same tokens "
        "under every code."
    )
    _draw_codes(result, page)
    if result.sequences.get("generated"):
        _draw_texts(result, page, options)
    _draw_prompts(result, page)
    if "accuracy" in result.tables:
        draw_known(result, page)
    if "losses" in result.tables:
        draw_training(result, page, options)


def _draw_codes(result: Result, page: Page) -> None:
    rows = result.tables["codes"]
    has_texts = any(row["measured"] for row in rows)
    page.table(
        ["code", "what stands before a text", "tokens", "for", *(["trained on", "measured"] if has_texts else [])],
        [
            [row["code"], row["prefix"], row["tokens"], row["description"]]
            + ([row["trained_on"], row["measured"]] if has_texts else [])
            for row in rows
        ],
        caption="The codes" + (", and how many texts are known to be theirs" if has_texts else ""),
        collapsed=len(rows) > 20,
    )


def _draw_texts(result: Result, page: Page, options: ControlCodesOptions) -> None:
    page.heading("One prompt under several codes")
    tuned = result.sequences["generated"][0].labels["model"] != BEFORE
    how = (
        "the likeliest token each time (T → 0)"
        if options.temperature == 0
        else f"drawn at T = {options.temperature:g}"
        + (f", among the {options.top_k} likeliest" if options.top_k else "")
        + (f", among the likeliest that have probability {options.top_p:g}" if options.top_p < 1 else "")
    )
    page.prose(
        f"Written by {'the fine-tuned model (first seed)' if tuned else 'the model as it is'}: {how}"
        + (
            f", and a penalty of θ = {options.penalty:g} on tokens that it has already generated. Code and prompt are "
            "not penalised. "
            if options.penalty_form != ["unpenalised"]
            else ". "
        )
        + f"The row '{NONE}' has no code before the prompt: what differs from it is the code's doing."
    )
    forms = list(dict.fromkeys(str(sequence.labels["form"]) for sequence in result.sequences["generated"]))
    for prompt in result.sequences["prompt"]:
        number = int(prompt.labels["prompt"] or 0)
        own = [each for each in result.sequences["generated"] if each.labels["prompt"] == number]
        for form in forms:
            first = [each for each in own if each.labels["form"] == form and each.labels["sample"] == 0]
            page.tokens(
                [TokenRow("prompt", [Token(text) for text in prompt.tokens]), *map(_text_row, first)],
                caption=f"Prompt {number + 1} under each code: {FORMS[form]}",
                legend=LEGEND,
                align=False,
                collapsed=form != forms[0] or number >= OPEN,
            )
        further = [each for each in own if each.labels["sample"] != 0 and each.labels["form"] == forms[0]]
        if further:
            page.tokens(
                [_text_row(each) for each in further],
                caption=f"Prompt {number + 1}, further samples: {FORMS[forms[0]]}",
                legend=LEGEND,
                align=False,
                collapsed=True,
            )
    page.table(
        ["penalty", "texts", "tokens that stood before", "least to greatest", "4-grams that did", "least to greatest",
         "the same text as corrected"],
        [
            [FORMS[str(row["form"])], row["texts"]]
            + [cell for name in ("tokens_again", "4grams_again") for cell in _share(row, name)]
            + [row["as_corrected"]]
            for row in result.tables["repetition"]
        ],
        caption="How much of what was generated repeats: share of its tokens, and of its 4-grams, that stood before",
        in_summary=True,
    )  # fmt: skip


def _share(row: Row, name: str) -> list[object]:
    if row[name] is None:
        return [None, None]
    return [round(row[name], 3), f"{row[f'{name}_least']:.3f} to {row[f'{name}_greatest']:.3f}"]


def _text_row(sequence: TokenSequence) -> TokenRow:
    tokens = [
        Token(text, value=min(times, DARKEST) / DARKEST, title=f"its 4-gram stood before: {times} ×")
        if times
        else Token(text)
        for text, times in zip(sequence.tokens, times_before(sequence.ids), strict=True)
    ]
    sample = int(sequence.labels["sample"] or 0)
    label = f"{sequence.labels['code']}, {sample + 1}" if sample else str(sequence.labels["code"])
    return TokenRow(label, tokens, note=f"{seq_rep(sequence.ids, 1) or 0:.0%} of its tokens stood before")


def _draw_prompts(result: Result, page: Page) -> None:
    page.heading("How likely each code makes the prompts")
    names = {
        int(each.labels["prompt"] or 0): f"{int(each.labels['prompt'] or 0) + 1}: {_short(''.join(each.tokens))}"
        for each in result.sequences["prompt"]
    }
    models = list(dict.fromkeys(str(row["model"]) for row in result.tables["attribution"]))
    for model in models:
        rows: list[Row] = [row for row in result.tables["likelihood"] if row["model"] == model]
        said = f", {model}" if len(models) > 1 else ""
        codes = list(dict.fromkeys(str(row["code"]) for row in rows))
        if len(names) == 1:
            _draw_one(page, rows, said)
        else:
            values = [[row["less_than_without"] for row in rows if row["prompt"] == n][1:] for n in names]
            page.heatmap(
                values,
                codes[1:],
                list(names.values()),
                x="code",
                y="prompt",
                value="nats gained",
                caption=f"What each code takes off a prompt's NLL, in nats per token{said}: below 0 it is less likely",
                domain=_ends(values),
            )
            page.table(
                ["prompt", NONE, *codes[1:]],
                [[names[n], *(round(row["nll"], 3) for row in rows if row["prompt"] == n)] for n in names],
                caption=f"NLL of each prompt, nats per token{said}",
                collapsed=True,
            )
            _draw_attribution(page, [row for row in result.tables["attribution"] if row["model"] == model], names, said)


def _draw_one(page: Page, rows: Sequence[Row], said: str) -> None:
    """One prompt: its codes, the likeliest first."""
    plain = next(row for row in rows if row["code"] == NONE)
    order = sorted((row for row in rows if row["code"] != NONE), key=lambda row: row["nll"])
    page.table(
        ["code", "NLL", "PPL", "less than without a code", "more than the likeliest"],
        [
            [row["code"], round(row["nll"], 3), _ppl(row), round(row["less_than_without"], 3),
             round(row["nll"] - order[0]["nll"], 3)]
            for row in order
        ]
        + [[NONE, round(plain["nll"], 3), _ppl(plain), None, round(plain["nll"] - order[0]["nll"], 3)]],
        caption=f"The prompt under each code, the likeliest first; nats per token{said}",
        remark="The last column of the second row is the margin of the attribution.",
        in_summary=True,
    )  # fmt: skip


def _draw_attribution(page: Page, rows: Sequence[Row], names: dict[int, str], said: str) -> None:
    page.table(
        ["prompt", "attributed to", "NLL", "PPL", "second", "margin", "NLL without a code"],
        [
            [names[row["prompt"]], row["code"] or "tied", round(row["nll"], 3), _ppl(row), row["second"],
             None if row["margin"] is None else round(row["margin"], 4), round(row["nll_without"], 3)]
            for row in rows
        ],
        caption=f"The likeliest code of each prompt, and its margin to the second in nats per token{said}",
        interactive=len(rows) > 20,
        in_summary=len(rows) <= 20,
    )  # fmt: skip


def _ends(values: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    low, high = min(map(min, values)), max(map(max, values))
    return (min(low, 0.0), max(high, 0.0)) if low < high else None


def _ppl(row: Row) -> float | None:
    return None if row["ppl"] is None else round(row["ppl"], 2)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
