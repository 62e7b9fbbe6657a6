"""What a sequence of tokens repeats: its n-grams, and which of them stood before. Without torch.

`seq-rep-n = 1 − unique n-grams / n-grams` (Welleck et al., 1908.04319).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Ids = Sequence[int]


def ngrams(ids: Ids, n: int, drop_last: bool = False) -> list[tuple[int, ...]]:
    """All n-grams in order, `L − n + 1` of them; `drop_last` leaves out the last for n ≥ 2, as SimCTG's code does."""
    count = len(ids) - n + 1 - (drop_last and n > 1)
    return [tuple(ids[start : start + n]) for start in range(count)]


def seq_rep(ids: Ids, n: int, drop_last: bool = False) -> float | None:
    """`1 − unique n-grams / n-grams`: 0 where none comes twice."""
    found = ngrams(ids, n, drop_last)
    return 1 - len(set(found)) / len(found) if found else None


def times_before(ids: Ids, n: int = 4) -> list[int]:
    """For each token, how often an n-gram that it is part of stood earlier in the sequence: the most of any."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = [0] * len(ids)
    for start, ngram in enumerate(ngrams(ids, n)):
        for place in range(start, start + n):
            found[place] = max(found[place], seen[ngram])
        seen[ngram] += 1
    return found
