"""Texts in groups, by length or by their surprisal under the model, and how many of each group come back."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import torch

# Groups of texts at most, each as large as the others where possible.
GROUPS = 8
# The least and the greatest value of a group, and its texts, `[n]`.
Group = tuple[float, float, torch.Tensor]


def lengths(counts: torch.Tensor) -> list[Group]:
    """Texts of each number of tokens, or of stretches of it where there are many."""
    return _groups(counts.double())


def surprisals(nats: torch.Tensor) -> list[Group]:
    """Texts in groups by `−log₂ p` under the model, in bits."""
    return _groups(nats.double() / log(2))


def by_group(labels: Mapping[str, Any], exact: torch.Tensor, groups: list[Group]) -> list[dict[str, Any]]:
    """How many texts of each group come back exactly; `exact` is `[n]`."""
    return [
        {
            **labels,
            "least": least,
            "greatest": greatest,
            "texts": len(rows),
            "exact": exact[rows].double().mean().item(),
        }
        for least, greatest, rows in groups
    ]


def _groups(values: torch.Tensor) -> list[Group]:
    distinct = values.unique()
    if len(distinct) <= GROUPS:
        return [(float(each), float(each), (values == each).nonzero()[:, 0]) for each in distinct]
    edges = values.quantile(torch.linspace(0, 1, GROUPS + 1, dtype=values.dtype)).unique()
    place = torch.bucketize(values, edges[1:-1], right=True)
    rows = [(place == number).nonzero()[:, 0] for number in range(len(edges) - 1)]
    return [(float(values[each].min()), float(values[each].max()), each) for each in rows if len(each)]
