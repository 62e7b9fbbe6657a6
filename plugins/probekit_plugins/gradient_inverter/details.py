"""The figures behind an inversion as folded tables: restarts, next tokens, candidates by rank, shifts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit import Page, Result, TokenSequence

# Columns of the candidates by rank.
RANKS = {
    "right": "share that is right",
    "cosine": "cosine to the prompt's token",
    "percentile": "percentile",
    "cosine_when_wrong": "cosine, wrong ones only",
    "percentile_when_wrong": "percentile, wrong ones only",
    "seen": "share seen in the text",
    "log10_frequency": "log₁₀ of occurrences per million",
}


def draw_details(result: Result, page: Page, prompt: TokenSequence, rows: Sequence[dict[str, Any]]) -> None:
    """The figures behind it, as tables."""
    number, site = prompt.labels["prompt"], str(prompt.labels["site"])
    _table(
        page,
        rows,
        {
            "restart": "restart",
            "selected": "selected",
            "token_accuracy": "token accuracy",
            "top_k_accuracy": "in the top k",
            "exact": "whole prompt",
            "steps_to_exact": "whole at step",
            "loss": "loss",
            "loss_ratio": "loss / m",
            "steps_to_closer": "below m at step",
            "discrete_loss": "discrete loss",
            "distance_l1": "L1 from the prompt's embeddings",
            "distance_l2": "L2 from them",
        },
        caption="All restarts: accuracy and loss",
    )
    _table(
        page,
        rows,
        {
            "restart": "restart",
            "rescored_token_accuracy": "token accuracy",
            "rescored_exact": "whole prompt",
            "rescored_discrete_loss": "discrete loss",
            "rescored_text": "text",
        },
        caption="All restarts: re-scored tokens",
        needs="rescored_token_accuracy",
    )
    _table(
        page,
        rows,
        {
            "restart": "restart",
            "next_token_of_embeddings": "its embeddings",
            "next_token_of_tokens": "its tokens",
            "next_token_of_text": "its text, tokenised again",
            "truncated_next_token_of_embeddings": "its embeddings, in O",
            "truncated_next_token_of_tokens": "its tokens, in O",
            "text": "text",
        },
        caption="All restarts: what keeps the model's next token, the one that it predicts after the prompt",
    )
    _ranks(result, page, prompt)
    _table(
        page,
        [row for row in result.tables["shifts"] if row["prompt"] == number and row["site"] == site],
        {
            "sigma": "σ",
            "m_median": "m, median",
            "m_min": "least",
            "m_max": "greatest",
            "closer_restarts": "share of restarts below m",
            "next_token_kept": "share that keeps the next token",
            "truncated_next_token_kept": "share that keeps it in O",
        },
        caption="The yardstick m: loss of the prompt's own embeddings with noise of σ added",
    )


def _ranks(result: Result, page: Page, prompt: TokenSequence) -> None:
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
        caption="Candidates by rank, mean over restarts: how near they are to the prompt's tokens",
        remark="Percentile: the share of the vocabulary that is less near to the prompt's token than the candidate is.",
    )


def _known_mean(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    """The mean of the figures that there are, or None."""
    known = [row[column] for row in rows if row[column] is not None]
    return mean(known) if known else None


def _table(
    page: Page,
    rows: Sequence[dict[str, Any]],
    columns: dict[str, str],
    caption: str,
    remark: str = "",
    needs: str | None = None,
) -> None:
    """A folded table of some columns under readable names; a column without a figure in any row is left out, and the
    whole table if the one that it `needs` is.
    """
    # A run that was saved before there was a column does not have it.
    shown = [column for column in columns if any(row.get(column) is not None for row in rows)]
    if needs is not None and needs not in shown:
        return
    page.table(
        [columns[column] for column in shown],
        [[row.get(column) for column in shown] for row in rows],
        caption=caption,
        collapsed=True,
        remark=remark,
    )
