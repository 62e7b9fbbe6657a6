"""The head: how many of the tokens that a model embeds it also predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probekit import Subject


def predicted_tokens(subject: Subject) -> int:
    """How many tokens have a logit, the first ones: some models embed others behind them, such as a prompt's own."""
    rows = getattr(subject.anatomy.unembedding, "out_features", None)
    return subject.vocabulary if rows is None else min(int(rows), subject.vocabulary)
