"""From margins and decoded tokens to figures: metrics, tables and the finding. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import mean
from typing import TYPE_CHECKING, Any

from probekit_plugins.arrays import array

if TYPE_CHECKING:
    from probekit import Result, TokenSequence
    from probekit_plugins.pseudo_inverse import PseudoInverseOptions

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]

# So many tokens of the least margins are told of each decoder, and of those that two decoders disagree on.
WEAKEST = 20
EXAMPLES = 6


def figured(result: Result, options: PseudoInverseOptions) -> Result:
    """A result with the figures that follow from its tensors, of torch or of numpy, and its token sequences."""
    found = replace(result, metrics={}, tables={})
    if "embedding_rank" in result.tensors:
        found.metrics["embedding_rank"] = int(result.tensors["embedding_rank"].item())
    decoders: list[str] = list(dict.fromkeys(options.decoders))
    margins = {name: Margins(result, name) for name in decoders if f"margins/{name}" in result.tensors}
    if margins:
        [named] = result.sequences["vocabulary"]
        texts = dict(zip(named.ids, named.tokens, strict=True))
        for name, each in margins.items():
            found.metrics |= {f"{name}/{figure}": value for figure, value in each.figures().items()}
        found.tables["weakest"] = [
            {"decoder": name, **row} for name, each in margins.items() for row in each.weakest(texts)
        ]
        if len(margins) > 1:
            found.tables["disagreement"] = _disagreement(margins, texts)
    lens = _lens(result)
    if lens:
        found.tables["lens"] = lens
    found.finding = _finding(found, decoders)
    return found


class Margins:
    """What one decoder makes of the vocabulary: the margin of each token, and its strongest rival, `[V]`."""

    def __init__(self, result: Result, decoder: str) -> None:
        self._margins, self._rivals = (array(result.tensors[f"{kind}/{decoder}"]) for kind in ("margins", "rivals"))

    def figures(self) -> Row:
        """Over the vocabulary."""
        ordered = sorted(self._margins.tolist())
        return {
            "round_trip_rate": (self._margins > 0).mean().item(),
            "ties": int((self._margins == 0).sum()),
            "margin_median": ordered[(len(ordered) - 1) // 2],
            "margin_min": ordered[0],
        }

    def winners(self) -> Any:
        """What each token decodes to, `[V]`."""
        import numpy

        return numpy.where(self._margins > 0, numpy.arange(len(self._margins)), self._rivals)

    def least(self) -> list[int]:
        """The tokens of the least margins, the least first."""
        found: list[int] = self._margins.argsort(kind="stable")[:WEAKEST].tolist()
        return found

    def rivals(self, tokens: Sequence[int]) -> list[int]:
        """The strongest rivals of tokens."""
        found: list[int] = self._rivals[list(tokens)].tolist()
        return found

    def weakest(self, texts: Mapping[int, str]) -> list[Row]:
        """A row for each of the least margins."""
        least = self.least()
        return [
            {
                "token": texts.get(token),
                "id": token,
                "margin": self._margins[token].item(),
                "strongest rival": texts.get(rival),
                "rival id": rival,
            }
            for token, rival in zip(least, self.rivals(least), strict=True)
        ]


def named_tokens(result: Result, decoders: Sequence[str]) -> list[int]:
    """The tokens that tables name, whose texts the result has to hold."""
    margins = [Margins(result, name) for name in decoders]
    weakest = [token for each in margins for token in (*each.least(), *each.rivals(each.least()))]
    apart = [token for pair in combinations(margins, 2) for token in _apart(*pair)[:EXAMPLES]]
    return sorted({*weakest, *apart})


def _apart(first: Margins, second: Margins) -> list[int]:
    """The tokens that two decoders take for different ones."""
    found: list[int] = (first.winners() != second.winners()).nonzero()[0].tolist()
    return found


def _disagreement(margins: Mapping[str, Margins], texts: Mapping[int, str]) -> list[Row]:
    rows: list[Row] = []
    for (first, one), (second, other) in combinations(margins.items(), 2):
        apart = _apart(one, other)
        rows.append(
            {
                "decoders": f"{first} / {second}",
                "tokens apart": len(apart),
                "share": len(apart) / len(one.winners()),
                "examples": " ".join(repr(texts.get(token)) for token in apart[:EXAMPLES]),
            }
        )
    return rows


def _lens(result: Result) -> list[Row]:
    """A row for each prompt, site and decoder: how often the token that stands there, or the next, is chosen."""
    prompts = {prompt.labels["prompt"]: prompt.ids for prompt in result.sequences["prompt"]}
    ranked: dict[tuple[Scalar, ...], list[TokenSequence]] = {}
    for sequence in result.sequences.get("lens", []):
        place = tuple(sequence.labels[key] for key in ("prompt", "site", "decoder"))
        ranked.setdefault(place, []).append(sequence)
    rows: list[Row] = []
    for (number, site, decoder), sequences in ranked.items():
        ids = prompts[number]
        first = next(sequence.ids for sequence in sequences if sequence.labels["rank"] == 0)
        candidates = zip(*(sequence.ids for sequence in sequences), strict=True)
        rows.append(
            {
                "prompt": number,
                "site": site,
                "decoder": decoder,
                "own token": _share(first, ids),
                "own token in top k": mean(float(token in among) for token, among in zip(ids, candidates, strict=True)),
                "next token": _share(first[:-1], ids[1:]) if len(ids) > 1 else None,
            }
        )
    return rows


def _share(found: Sequence[int], wanted: Sequence[int]) -> float:
    return mean(float(one == other) for one, other in zip(found, wanted, strict=True))


def _finding(result: Result, decoders: Sequence[str]) -> str:
    lens = result.tables.get("lens", [])
    parts = []
    found = {name: result.metrics.get(f"{name}/round_trip_rate") for name in decoders}
    rates = ", ".join(f"{name} {rate:.2%}" for name, rate in found.items() if rate is not None)
    if rates:
        parts.append(f"Tokens of the vocabulary that decode to themselves: {rates}.")
    if lens:
        last = str(lens[-1]["site"])
        own = {
            name: [float(row["own token"] or 0) for row in lens if (row["site"], row["decoder"]) == (last, name)]
            for name in decoders
        }
        shares = ", ".join(f"{name} {mean(values):.0%}" for name, values in own.items() if values)
        parts.append(f"At {last} the prompt's own tokens are still the first choice for: {shares}.")
    return " ".join(parts)
