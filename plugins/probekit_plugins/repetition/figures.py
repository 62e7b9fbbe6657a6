"""Figures of repetition: functions of token ids, without torch.

`seq-rep-n = 1 − unique n-grams / n-grams` (Welleck et al., 1908.04319), `diversity = Π_{n=2..4} (1 − seq-rep-n)` (Su et
al., 2202.06417), the longest repeated span; pooled over sequences distinct-n (Li et al., 1510.03055) and self-BLEU (Zhu
et al., 1802.01886). A sequence too short for a figure has None.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod

from probekit_plugins.repeats import Ids, ngrams, seq_rep

Figures = dict[str, float | None]

ORDERS = (1, 2, 3, 4)
OF_SEQUENCES = (*(f"seq_rep_{n}" for n in ORDERS), "longest_repeat", "diversity")
POOLED = (*(f"distinct_{n}" for n in ORDERS), "pooled_diversity", "self_bleu")
# Self-BLEU compares each text with all others: more texts than this are thinned, evenly.
MOST_TEXTS = 50


def diversity(ids: Ids, drop_last: bool = False) -> float | None:
    """`Π_{n=2..4} (1 − seq-rep-n)`: 1 where nothing comes twice."""
    repeated = [seq_rep(ids, n, drop_last) for n in (2, 3, 4)]
    kept = [1 - share for share in repeated if share is not None]
    return prod(kept) if len(kept) == len(repeated) else None


def longest_repeat(ids: Ids) -> int:
    """The length of the longest run of tokens that stands at two different places; 0 if no token comes twice.

    The two may overlap (`a a a a` has a repeat of 3), so it is the greatest n with a seq-rep-n above 0. If a run of n
    tokens is repeated, so is one of n − 1: hence the bisection.
    """
    low, high = 0, max(len(ids) - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        found = ngrams(ids, middle)
        low, high = (middle, high) if len(set(found)) < len(found) else (low, middle - 1)
    return low


def of_sequence(ids: Ids, drop_last: bool = False) -> Figures:
    """Every figure of one sequence."""
    found: Figures = {f"seq_rep_{n}": seq_rep(ids, n, drop_last) for n in ORDERS}
    return found | {"longest_repeat": longest_repeat(ids), "diversity": diversity(ids, drop_last)}


def distinct(sequences: Sequence[Ids], n: int, over: str = "tokens") -> float | None:
    """Distinct n-grams of all sequences together, divided by all tokens as published, or by all n-grams."""
    found = [ngram for ids in sequences for ngram in ngrams(ids, n)]
    divisor = len(found) if over == "ngrams" else sum(len(ids) for ids in sequences)
    return len(set(found)) / divisor if found else None


def pooled_diversity(sequences: Sequence[Ids], drop_last: bool = False) -> float | None:
    """Diversity from n-grams counted over all sequences, unique within each: how SimCTG's code reports a model."""
    kept = []
    for n in (2, 3, 4):
        found = [ngrams(ids, n, drop_last) for ids in sequences]
        total = sum(map(len, found))
        if not total:
            return None
        kept.append(sum(len(set(each)) for each in found) / total)
    return prod(kept)


def self_bleu(sequences: Sequence[Ids]) -> float | None:
    """The mean BLEU-4 of each sequence against all others, smoothed by Chen and Cherry's method 1: 1 if all are alike.

    None for fewer than two sequences of four tokens. At most `MOST_TEXTS` are compared.
    """
    long_enough = [list(ids) for ids in sequences if len(ids) >= 4]
    if len(long_enough) < 2:
        return None
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # slow to import

    kept = long_enough[:: -(-len(long_enough) // MOST_TEXTS)]
    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu(kept[:index] + kept[index + 1 :], ids, smoothing_function=smooth)
        for index, ids in enumerate(kept)
    ]
    return float(sum(scores) / len(scores))


def of_group(sequences: Sequence[Ids], drop_last: bool = False, over: str = "tokens", bleu: bool = True) -> Figures:
    """Every figure that is pooled over sequences."""
    found: Figures = {f"distinct_{n}": distinct(sequences, n, over) for n in ORDERS}
    found["pooled_diversity"] = pooled_diversity(sequences, drop_last)
    return found | {"self_bleu": self_bleu(sequences) if bleu else None}


def average(values: Sequence[float | None]) -> float | None:
    """The mean of the figures that are there."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def averages(rows: Sequence[Figures]) -> Figures:
    """The mean of each figure over rows."""
    names = dict.fromkeys(chain.from_iterable(rows))
    return {name: average([row.get(name) for row in rows]) for name in names}
