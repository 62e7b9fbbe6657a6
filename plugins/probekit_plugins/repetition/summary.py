"""Groups of sequences as table rows: every figure with its spread, beside the same figure for random tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import TYPE_CHECKING

import torch

from probekit_plugins.repeats import Ids
from probekit_plugins.repetition.figures import OF_SEQUENCES, POOLED, Figures, averages, of_group, of_sequence

if TYPE_CHECKING:
    from probekit import Context
    from probekit_plugins.repetition import RepetitionOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]

# Pooled figures of this many random tokens hardly vary, so large groups need fewer draws; self-BLEU is dear.
TOKENS_OF_ALL_DRAWS = 100_000
DRAWS_OF_SELF_BLEU = 2


class RandomTokens:
    """What uniformly random tokens come to: the mean over draws of each figure, for the same lengths and vocabulary."""

    def __init__(self, options: RepetitionOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._sequences: dict[tuple[int, int], Figures] = {}
        self._groups: dict[tuple[int, tuple[int, ...]], Figures] = {}

    def of_sequence(self, length: int, vocabulary: int) -> Figures:
        """The figures of one sequence of that length, averaged over draws."""
        key = (length, vocabulary)
        if key not in self._sequences:
            generator = self._context.generator(f"random/{vocabulary}/{length}")
            drawn = torch.randint(vocabulary, (self._options.random_draws, length), generator=generator).tolist()
            self._sequences[key] = averages([of_sequence(ids, self._options.drop_last) for ids in drawn])
        return self._sequences[key]

    def of_group(self, lengths: Sequence[int], vocabulary: int) -> Figures:
        """The figures pooled over sequences of these lengths, averaged over draws of all of them."""
        options, kept = self._options, tuple(sorted(lengths))
        key = (vocabulary, kept)
        if key not in self._groups:
            generator = self._context.generator(f"random groups/{vocabulary}/{kept}")
            draws = max(1, min(options.random_draws, TOKENS_OF_ALL_DRAWS // max(sum(kept), 1)))
            found = []
            for draw in range(draws):
                drawn = torch.randint(vocabulary, (sum(kept),), generator=generator).split(list(kept))
                sequences: list[list[int]] = [ids.tolist() for ids in drawn]
                bleu = draw < DRAWS_OF_SELF_BLEU
                found.append(of_group(sequences, options.drop_last, options.distinct_over, bleu))
            self._groups[key] = averages(found)
        return self._groups[key]


def row(sequences: Sequence[Ids], vocabulary: int, options: RepetitionOptions, random: RandomTokens) -> Row:
    """Figures of a group: mean, median, least and greatest over its sequences, what is pooled, and random tokens'."""
    lengths = [len(ids) for ids in sequences]
    found: Row = {"sequences": len(sequences), "length": median(lengths)}
    figures = [of_sequence(ids, options.drop_last) for ids in sequences]
    expected = averages([random.of_sequence(length, vocabulary) for length in lengths])
    for name in OF_SEQUENCES:
        found |= spread(name, [each[name] for each in figures])
        found[f"{name}_random"] = expected[name]
    pooled = of_group(sequences, options.drop_last, options.distinct_over)
    expected = random.of_group(lengths, vocabulary)
    for name in POOLED:
        found |= {name: pooled[name], f"{name}_random": expected[name]}
    return found


def spread(name: str, values: Sequence[float | None]) -> Row:
    """Mean, median, least and greatest of the figures that are there; None where there is none."""
    present = [value for value in values if value is not None]
    if not present:
        return dict.fromkeys(f"{name}_{kind}" for kind in ("mean", "median", "min", "max"))
    found = {"mean": mean(present), "median": median(present), "min": min(present), "max": max(present)}
    return {f"{name}_{kind}": float(value) for kind, value in found.items()}


def metrics(prefix: str, found: Mapping[str, Scalar], centre: str = "mean") -> dict[str, Scalar]:
    """The figures of a row that a reader would compare by name: `greedy/seq_rep_4_mean` and so on."""
    names = [f"{name}_{kind}" for name in OF_SEQUENCES for kind in (centre, "random")]
    names += [name for pooled in POOLED for name in (pooled, f"{pooled}_random")]
    return {f"{prefix}/{name}": found[name] for name in names}
