"""The inverter's page: recovered tokens by restart, tokens over steps, losses, accuracy, candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from probekit import Token, TokenRow, TokenSequence
from probekit_plugins.gradient_inverter.comparison_page import draw_comparison
from probekit_plugins.thinning import thinned

if TYPE_CHECKING:
    from probekit import Page, Result
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# What the marks of tokens mean.
MARKS = {"right": "the prompt's own token", "wrong": "another token"}
# Columns of the candidates by rank.
RANKS = {
    "right": "right",
    "cosine": "cosine to the prompt's token",
    "percentile": "its percentile",
    "cosine_when_wrong": "cosine of wrong ones",
    "percentile_when_wrong": "their percentile",
    "seen": "in the text at all",
    "log10_frequency": "log₁₀ per million",
}


def draw(result: Result, page: Page, options: GradientInverterOptions) -> None:
    prompts = result.sequences["prompt"]
    sites = list(dict.fromkeys(str(sequence.labels["site"]) for sequence in prompts))
    head = {
        "none": "",
        "model": " followed by the model's head",
        "without-norm": " followed by the head without its norm",
    }
    sigma = f"{result.metrics['start_sigma']:.3g}"
    start = f"Each restart starts from N({options.start_mean:g}, {sigma}) and"
    if options.start == "regression":
        start = (
            "The first restart starts from E[e | a], the embeddings that a regression, learnt on the model's own "
            f"outputs, expects at each activation, the others from N(E[e | a], {sigma}); each"
        )
    rescored = (
        " Then the best candidates of each position, from the left, are told apart by what the layer makes of the "
        f"tokens themselves (re-scoring of {options.rescore})."
        if options.rescore
        else ""
    )
    page.prose(
        f"O is the model up to the site{head[options.head]}, t its activation for the prompt. {start} descends "
        f"‖O(e) − t‖ ({options.loss}) by {options.optimizer} for {options.steps} steps, at the learning rate "
        f"{result.metrics['learning_rate']:.3g} ({options.schedule}). The embeddings that it ends with are decoded to "
        f"tokens ({options.decoder}).{rescored}\n\n"
        "The loss is given relative to m, the loss of the prompt's own embeddings shifted by "
        f"N(0, {options.shift_sigma[0]:g}): below 1, the descent came closer than that shift. The discrete loss is "
        "measured again with the decoded tokens in place of the embeddings: 0 means that they reproduce the activation."
    )
    _overview(result, page, sites)
    draw_comparison(result, page, sites, options)
    for sequence in prompts:
        _one_inversion(result, page, sequence, many=len(prompts) > 1)


def _overview(result: Result, page: Page, sites: Sequence[str]) -> None:
    figures = {
        "selected": "token_accuracy_selected",
        "mean": "token_accuracy_mean",
        "least": "token_accuracy_min",
        "most": "token_accuracy_max",
        "top-k": "top_k_accuracy_mean",
        "exact": "exact_rate",
        "re-scored": "rescored_token_accuracy_mean",
        "re-scored, exact": "rescored_exact_rate",
        "loss / m": "loss_ratio_median",
    }
    figures = {name: figure for name, figure in figures.items() if f"{sites[0]}/{figure}" in result.metrics}
    page.table(
        ["site", *figures],
        [[site, *(result.metrics[f"{site}/{figure}"] for figure in figures.values())] for site in sites],
        caption="Token accuracy over restarts and prompts: the selected restart, then all of them; median loss / m",
    )
    if len(sites) > 1:
        for number in dict.fromkeys(sequence.labels["prompt"] for sequence in result.sequences["prompt"]):
            tokens = next(s.tokens for s in result.sequences["prompt"] if s.labels["prompt"] == number)
            page.heatmap(
                [result.tensors[f"{number}/{site}/right"].tolist() for site in sites],
                x_labels=tokens,
                y_labels=sites,
                x="token of the prompt",
                y="site",
                value="share of restarts that recover it",
                caption=f"Where prompt {number + 1} survives" if isinstance(number, int) else "",
                domain=(0.0, 1.0),
            )


def _one_inversion(result: Result, page: Page, prompt: TokenSequence, many: bool) -> None:
    number, site = prompt.labels["prompt"], str(prompt.labels["site"])
    prefix = f"{number}/{site}"
    rows = [row for row in result.tables["restarts"] if row["prompt"] == number and row["site"] == site]
    selected = next(row for row in rows if row["selected"])
    page.heading(f"{site}, prompt {int(number or 0) + 1}" if many else site)
    found = list(_of(result, "recovered", prompt))
    page.tokens(
        [
            TokenRow("prompt", [Token(text) for text in prompt.tokens]),
            *(
                TokenRow(
                    f"restart {row['restart']}",
                    _marked(
                        next(s for s in found if s.labels["restart"] == row["restart"] and s.labels["rank"] == 0),
                        prompt,
                    ),
                    note=_note(row),
                )
                for row in rows
            ),
            *(
                TokenRow(
                    f"restart {sequence.labels['restart']}, re-scored",
                    _marked(sequence, prompt),
                    note=_note(row, "rescored_"),
                )
                for row, sequence in zip(rows, _of(result, "rescored", prompt), strict=False)
            ),
        ],
        caption="Recovered tokens by restart",
        marks=MARKS,
    )
    page.trajectory(
        {
            f"restart {selected['restart']}": [
                TokenRow(f"step {sequence.labels['step']}", _marked(sequence, prompt))
                for sequence in _of(result, "trajectory", prompt)
            ]
        },
        reference=TokenRow("prompt", [Token(text) for text in prompt.tokens]),
        caption="Tokens over steps of the selected restart",
        marks=MARKS,
        collapsed=many,
    )
    shifted = float(selected["shifted_loss"] or 0) or 1.0
    losses = result.tensors[f"{prefix}/losses"] / shifted
    steps = thinned(len(losses))
    page.lines(
        {
            f"restart {index}": [(step, float(losses[step, index])) for step in steps]
            for index in range(losses.shape[1])
        },
        x="step",
        y="loss / m",
        caption="Loss over steps, relative to the shifted prompt's",
        log_y=bool((losses > 0).all()),
    )
    accuracy = result.tensors[f"{prefix}/recorded_accuracy"]
    recorded = result.tensors[f"{prefix}/recorded_steps"].tolist()
    page.lines(
        {
            f"restart {index}": [(step, float(value)) for step, value in zip(recorded, accuracy[:, index], strict=True)]
            for index in range(accuracy.shape[1])
        },
        x="step",
        y="token accuracy",
        caption="Token accuracy over steps",
    )
    page.tokens(
        [
            TokenRow(f"top {int(sequence.labels['rank'] or 0) + 1}", _marked(sequence, prompt))
            for sequence in found
            if sequence.labels["restart"] == selected["restart"]
        ],
        caption=f"Candidates for each position, best first, restart {selected['restart']}",
        collapsed=many,
    )
    _ranks(result, page, prompt, collapsed=many)
    _table(
        page,
        rows,
        {
            "restart": "restart",
            "selected": "selected",
            "loss": "loss",
            "loss_ratio": "loss / m",
            "token_accuracy": "token accuracy",
            "top_k_accuracy": "top-k accuracy",
            "exact": "exact",
            "steps_to_closer": "closer than m at step",
            "steps_to_exact": "exact at step",
            "discrete_loss": "discrete loss",
            "rescored_token_accuracy": "re-scored: token accuracy",
            "rescored_exact": "exact",
            "rescored_discrete_loss": "discrete loss of these",
            "distance_l1": "‖e_N − e*‖₁",
            "distance_l2": "‖e_N − e*‖₂",
            "next_token_of_embeddings": "e_N keeps the next token",
            "next_token_of_tokens": "its tokens keep it",
            "next_token_of_text": "its text, tokenised again, keeps it",
            "truncated_next_token_of_embeddings": "e_N keeps O's own next token",
            "truncated_next_token_of_tokens": "its tokens keep that",
            "text": "text",
            "rescored_text": "re-scored text",
        },
        caption="All restarts",
        collapsed=many,
    )
    _table(
        page,
        [row for row in result.tables["shifts"] if row["prompt"] == number and row["site"] == site],
        {
            "sigma": "σ",
            "m_median": "m, median",
            "m_min": "least",
            "m_max": "greatest",
            "closer_restarts": "restarts closer than m",
            "next_token_kept": "e′ keeps the next token",
            "truncated_next_token_kept": "e′ keeps O's own next token",
        },
        caption="The prompt's own embeddings shifted by N(0, σ): how far that moves the activation",
        collapsed=many,
    )


def _ranks(result: Result, page: Page, prompt: TokenSequence, collapsed: bool) -> None:
    """The candidates of each rank, over restarts, beside random tokens and the prompt's own."""
    number, site = prompt.labels["prompt"], prompt.labels["site"]
    found = [row for row in result.tables.get("ranks", []) if row["prompt"] == number and row["site"] == site]
    rows: list[dict[str, Any]] = []
    for rank in dict.fromkeys(row["rank"] for row in found):
        of_rank = [row for row in found if row["rank"] == rank]
        rows.append({"label": f"top {int(rank or 0) + 1}", **{name: _known_mean(of_rank, name) for name in RANKS}})
    if not rows:
        return
    for label, kind, known in (("random tokens", "random", {"percentile": 0.5}), ("the prompts' own", "prompt", {})):
        figures = {name: result.metrics.get(f"{site}/{kind}_{name}") for name in ("seen", "log10_frequency")}
        if known or figures["seen"] is not None:
            rows.append({"label": label, **known, **figures})
    _table(
        page,
        rows,
        {"label": "candidates", **RANKS},
        caption="Candidates by rank, over restarts: how near they are to the prompt's tokens, and how frequent",
        collapsed=collapsed,
    )


def _known_mean(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    """The mean of the figures that there are, or None."""
    known = [row[column] for row in rows if row[column] is not None]
    return mean(known) if known else None


def _table(page: Page, rows: Sequence[dict[str, Any]], columns: dict[str, str], caption: str, collapsed: bool) -> None:
    """A table of some columns under readable names; a column without a figure in any row is left out."""
    # A run that was saved before there was a column does not have it.
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    page.table(
        [columns[column] for column in shown],
        [[row.get(column) for column in shown] for row in rows],
        caption=caption,
        collapsed=collapsed,
    )


def _of(result: Result, name: str, prompt: TokenSequence) -> Iterator[TokenSequence]:
    """The sequences of that name that belong to the same prompt and site."""
    for sequence in result.sequences.get(name, []):
        if all(sequence.labels[key] == prompt.labels[key] for key in ("prompt", "site")):
            yield sequence


def _marked(sequence: TokenSequence, prompt: TokenSequence) -> list[Token]:
    return [
        Token(text, mark="right" if index == wanted else "wrong", title=f"token {index}, wanted {wanted}")
        for text, index, wanted in zip(sequence.tokens, sequence.ids, prompt.ids, strict=True)
    ]


def _note(row: dict[str, Any], kind: str = "") -> str:
    ratio = "" if kind or row["loss_ratio"] is None else f", loss / m {row['loss_ratio']:.3g}"
    # The tokens that a run ends with are those that the selected restart is chosen by.
    is_last = kind or row.get("rescored_discrete_loss") is None
    return f"{row[f'{kind}token_accuracy']:.0%}{ratio}, discrete loss {row[f'{kind}discrete_loss']:.3g}" + (
        ", selected" if row["selected"] and is_last else ""
    )
