"""Attribution: which code a text is the likeliest under, by how much, and how often that is its own. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean, median

# The model as it was given, fine-tuned under its codes, and fine-tuned under codes that say nothing.
BEFORE, TUNED, SHUFFLED = "before", "fine-tuned", "codes shuffled"

Nll = Sequence[float]


@dataclass(frozen=True)
class Attributed:
    """The code with the lowest NLL, the second, and how many nats per token lie between them.

    None is attributed where several have the lowest. With one code there is no second.
    """

    code: int | None
    second: int | None
    margin: float | None


def attribute(nll: Nll) -> Attributed:
    """`argmin_c PPL(x|c) = argmin_c NLL(x|c)`, every code being as likely as another beforehand."""
    order = sorted(range(len(nll)), key=lambda code: nll[code])
    if len(order) < 2:
        return Attributed(order[0], None, None)
    margin = nll[order[1]] - nll[order[0]]
    return Attributed(order[0] if margin > 0 else None, order[1], margin)


def confusion(known: Sequence[int], found: Sequence[Attributed], codes: int) -> list[list[int]]:
    """How many texts of each code (row) are attributed to each (column); the last column counts ties."""
    counts = [[0] * (codes + 1) for _ in range(codes)]
    for own, each in zip(known, found, strict=True):
        counts[own][codes if each.code is None else each.code] += 1
    return counts


def chance(known: Sequence[int]) -> float:
    """The accuracy of one who always names the code of the most texts: 1/K where all K have as many."""
    return max(Counter(known).values()) / len(known)


@dataclass(frozen=True)
class Score:
    """How well texts are told apart: accuracy, and NLL under their own and under other codes.

    `probability` is the mean over texts of `p(own|x) ∝ p(x|own)`, every code being as likely as another beforehand:
    where codes say nothing it is 1/K, also if differences next to none decide all attributions of a code alike, and
    accuracy is anything. `other` is the mean over all other codes, `gap` that of `NLL(other codes) − NLL(own)`, 0 where
    codes say nothing. `margin` is the median over texts.
    """

    right: int
    texts: int
    accuracy: float
    probability: float
    own: float
    other: float
    gap: float
    margin: float


def score(known: Sequence[int], nll: Sequence[Nll], tokens: Sequence[int]) -> Score:
    """Of texts whose codes are known, `nll[text][code]` per token, with two codes at least."""
    found = [attribute(row) for row in nll]
    right = sum(each.code == own for own, each in zip(known, found, strict=True))
    own = [row[code] for code, row in zip(known, nll, strict=True)]
    other = [(sum(row) - row[code]) / (len(row) - 1) for code, row in zip(known, nll, strict=True)]
    return Score(
        right,
        len(nll),
        right / len(nll),
        fmean(_probability(row, code, count) for code, row, count in zip(known, nll, tokens, strict=True)),
        fmean(own),
        fmean(other),
        fmean(b - a for a, b in zip(own, other, strict=True)),
        median(each.margin or 0.0 for each in found),
    )


def _probability(nll: Nll, own: int, tokens: int) -> float:
    """`p(own|x)`: one over the sum of all codes' likelihoods relative to its own."""
    ratios = [tokens * (nll[own] - other) for other in nll]
    highest = max(ratios)
    return exp(-highest) / sum(exp(ratio - highest) for ratio in ratios)


def by_code(known: Sequence[int], nll: Sequence[Nll], codes: int) -> list[list[float]]:
    """Mean NLL of the texts of each code (row) under each code (column)."""
    return [
        [fmean(row[code] for own, row in zip(known, nll, strict=True) if own == each) for code in range(codes)]
        for each in range(codes)
    ]
