"""The page: repetition by strategy, the texts themselves, given text, and what a fine-tuning changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.repeats import seq_rep, times_before
from probekit_plugins.repetition.charts import bars, grouped_bars, rounded
from probekit_plugins.repetition.comparison import draw_decoded, draw_runs

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.repetition import RepetitionOptions

Row = dict[str, Any]

STAGES = {"before": "before", "mle": "MLE alone", "unlikelihood": "with unlikelihood"}
# A token is as dark as it gets where its 4-gram stood so often before.
DARKEST = 4
LEGEND = f"tokens of a 4-gram that stood before in the same text; 1 is {DARKEST} times or more"


def draw(result: Result, page: Page, options: RepetitionOptions) -> None:
    page.prose(
        "seq-rep-n is the share of n-grams that stood before in the same sequence, 1 − unique n-grams / n-grams; "
        "diversity is the product of 1 − seq-rep-n for n = 2, 3, 4. The longest repeat is the longest run of tokens "
        "that stands at two places. rep/l is the share of positions whose most likely next token stands among the l "
        "tokens before, wrep/l where it is wrong as well.\n\n"
        "Beside each figure stands the one of uniformly random tokens of the same length and vocabulary: a short "
        "sequence repeats little by itself."
    )
    own = [row for row in result.tables.get("generated", []) if row["run"] == "this run"]
    before = [row for row in own if row["stage"] == "before"]
    if before:
        page.heading("Generated text")
        _draw_strategies(page, before, options)
        _draw_texts(result, page)
    page.heading("Given text")
    _draw_figures(page, "text", result.tables["given"], options, "Given text: means over texts")
    if "fine_tuning" in result.tables:
        page.heading("Unlikelihood fine-tuning")
        _draw_fine_tuning(result, page, own, options)
    draw_decoded(result, page)
    draw_runs(result, page)
    if result.tables.get("texts"):
        page.heading("Every text")
        _draw_every_text(page, result.tables["texts"])


def _draw_strategies(page: Page, rows: Sequence[Row], options: RepetitionOptions) -> None:
    for figure, title in (("seq_rep_4", "seq-rep-4"), ("diversity", "diversity")):
        values = [
            {
                "strategy": row["strategy"],
                title: row[f"{figure}_mean"],
                "low": row[f"{figure}_min"],
                "high": row[f"{figure}_max"],
                "random": row[f"{figure}_random"],
            }
            for row in rows
            if row[f"{figure}_mean"] is not None
        ]
        if values:
            page.chart(
                bars(values, "strategy", title),
                caption=f"{title} by strategy: the mean over texts, from the least to the greatest",
            )
    _draw_figures(page, "strategy", rows, options, "Generated text: means over texts")


def _draw_figures(page: Page, label: str, rows: Sequence[Row], options: RepetitionOptions, caption: str) -> None:
    """One row a group, and below them what random tokens come to; figures that no row has are left out."""
    columns = {
        **{f"seq-rep-{n}": f"seq_rep_{n}_mean" for n in (1, 2, 3, 4)},
        "longest repeat": "longest_repeat_mean",
        "diversity": "diversity_mean",
        "pooled diversity": "pooled_diversity",
        **{f"distinct-{n}": f"distinct_{n}" for n in (1, 2, 3, 4)},
        "self-BLEU": "self_bleu",
        **{
            f"{name}/{window}": f"{kind}_{window}"
            for window in options.windows
            for kind, name in (("rep", "rep"), ("wrep", "wrep"), ("text_rep", "text's own"))
        },
        "unlikelihood": "unlikelihood",
        "NLL": "nll",
    }
    shown = {name: key for name, key in columns.items() if any(row.get(key) is not None for row in rows)}
    body: list[list[object]] = []
    for row in rows:
        body.append([row[label], row["sequences"], row["length"], *(rounded(row.get(key)) for key in shown.values())])
    # Random tokens' figures differ where lengths or numbers of texts do.
    for row in {(row["sequences"], row["length"]): row for row in rows}.values():
        random = [rounded(row.get(f"{key.removesuffix('_mean')}_random")) for key in shown.values()]
        body.append(["random tokens", row["sequences"], row["length"], *random])
    page.table([label, "texts", "tokens", *shown], body, caption=f"{caption}; the last figures are per token")


def _draw_texts(result: Result, page: Page) -> None:
    written = [sequence for sequence in result.sequences["generated"] if sequence.labels["stage"] == "before"]
    for prompt in result.sequences["prompt"]:
        number = prompt.labels["prompt"]
        of_it = [sequence for sequence in written if sequence.labels["prompt"] == number]
        first = [sequence for sequence in of_it if sequence.labels["sample"] == 0]
        start = TokenRow("prompt", [Token(text) for text in prompt.tokens])
        page.tokens(
            [start, *(_text_row(sequence, str(sequence.labels["strategy"])) for sequence in first)],
            caption=f"Prompt {int(number or 0) + 1}, continued by each strategy",
            legend=LEGEND,
            align=False,
        )
        further = [sequence for sequence in of_it if sequence.labels["sample"] != 0]
        if further:
            page.tokens(
                [
                    _text_row(sequence, f"{sequence.labels['strategy']}, {int(sequence.labels['sample'] or 0) + 1}")
                    for sequence in further
                ],
                caption=f"Further samples of prompt {int(number or 0) + 1}",
                legend=LEGEND,
                collapsed=True,
                align=False,
            )


def _text_row(sequence: TokenSequence, label: str) -> TokenRow:
    tokens = [
        Token(text, value=min(times, DARKEST) / DARKEST, title=f"its 4-gram stood before: {times} ×")
        if times
        else Token(text)
        for text, times in zip(sequence.tokens, times_before(sequence.ids), strict=True)
    ]
    share = seq_rep(sequence.ids, 4)
    return TokenRow(label, tokens, note="" if share is None else f"seq-rep-4 {share:.2f}")


def _draw_fine_tuning(result: Result, page: Page, own: Sequence[Row], options: RepetitionOptions) -> None:
    text = "the given text" if options.text else "text that the model wrote itself at temperature 1"
    page.prose(
        f"Two copies of the model were tuned for {options.unlikelihood_steps} steps of {options.unlikelihood_batch} "
        f"pieces on {text}: one by MLE alone, one by MLE + {options.unlikelihood_alpha:g} × unlikelihood, on the same "
        "batches. Only what differs between the two is an effect of unlikelihood. "
        f"{result.metrics['training_pieces']} pieces were trained on, {result.metrics['held_out_pieces']} held out. "
        "Texts were generated from the same prompts with the same seeds."
    )
    values = [
        {"strategy": row["strategy"], "model": STAGES[row["stage"]], "seq-rep-4": row["seq_rep_4_mean"]}
        for row in own
        if row["seq_rep_4_mean"] is not None
    ]
    if values:
        page.chart(
            grouped_bars(values, "strategy", "seq-rep-4", "model"), caption="seq-rep-4 by strategy, before and after"
        )
        figures = [*(f"seq_rep_{n}_mean" for n in (1, 2, 3, 4)), "diversity_mean", "longest_repeat_mean"]
        order = list(dict.fromkeys(row["strategy"] for row in own))
        page.table(
            ["strategy", "model", "seq-rep-1", "seq-rep-2", "seq-rep-3", "seq-rep-4", "diversity", "longest repeat"],
            [
                [row["strategy"], STAGES[row["stage"]], *(rounded(row[figure]) for figure in figures)]
                for row in sorted(own, key=lambda row: (order.index(row["strategy"]), list(STAGES).index(row["stage"])))
            ],
            caption="Generated text before and after: means over texts",
        )
    names = [name for window in options.windows for name in (f"rep_{window}", f"wrep_{window}")]
    page.table(
        ["model", "NLL", "unlikelihood", *(name.replace("_", "/") for name in names)],
        [
            [STAGES[str(row["stage"])], row["nll"], row["unlikelihood"], *(rounded(row[name]) for name in names)]
            for row in result.tables["fine_tuning"]
        ],
        caption="On held-out pieces, per token",
    )
    for column, title in ((0, "negative log-likelihood"), (1, "unlikelihood")):
        page.lines(
            {
                STAGES[stage]: [
                    (step + 1, value) for step, value in enumerate(result.tensors[f"losses/{stage}"][:, column])
                ]
                for stage in ("mle", "unlikelihood")
            },
            x="step",
            y=title,
            caption=f"Training loss per token: {title}",
        )
    greedy = [s for s in result.sequences.get("generated", []) if s.labels["strategy"] == "greedy"]
    for number in dict.fromkeys(sequence.labels["prompt"] for sequence in greedy):
        page.tokens(
            [
                _text_row(sequence, STAGES[str(sequence.labels["stage"])])
                for sequence in greedy
                if sequence.labels["prompt"] == number
            ],
            caption=f"Prompt {int(number or 0) + 1}, continued greedily before and after",
            legend=LEGEND,
            align=False,
            collapsed=bool(number),
        )


def _draw_every_text(page: Page, rows: Sequence[Row]) -> None:
    columns = {
        "kind": "kind",
        "stage": "model",
        "strategy": "strategy",
        "prompt": "number",
        "sample": "sample",
        **{f"seq_rep_{n}": f"seq-rep-{n}" for n in (1, 2, 3, 4)},
        "longest_repeat": "longest repeat",
        "diversity": "diversity",
        "unlikelihood": "unlikelihood",
        "nll": "NLL",
        "text": "text",
    }
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    page.table(
        [columns[column] for column in shown],
        [[rounded(row.get(column)) for column in shown] for row in rows],
        caption="Every text with its figures",
        collapsed=True,
    )
