"""What a feature of a sparse code stands for: the contexts in which it is most active, and how often it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from probekit_plugins.examples import Document

# Features that are shown: the strongest, and some of the others, drawn.
STRONGEST = 12
DRAWN = 4
CONTEXTS = 5
BEFORE, AFTER = 12, 4
# Edges of the histogram of log10 density; what is never active has a bar of its own.
LOWEST, BINS = -5, 20


@dataclass(frozen=True)
class Context:
    """Tokens around one at which a feature is active, and its activation at each of them; 0 at what was left out."""

    ids: list[int]
    values: list[float]
    peak: int
    document: int


@dataclass(frozen=True)
class Shown:
    """What is shown of a sparse code: the sum of squared activations of each feature on some documents, `[q]`; and by
    the numbers of the features that were chosen their contexts, the strongest first.
    """

    energy: torch.Tensor
    contexts: dict[int, list[Context]]


def shown(
    encode: Callable[[torch.Tensor], torch.Tensor],
    documents: Sequence[Document],
    device: torch.device,
    generator: torch.Generator,
) -> Shown:
    """The features with the greatest sum of squared activations on these documents, and some drawn of the others."""
    with torch.no_grad():
        codes = [encode(document.examples[:, 0].to(device)).cpu() for document in documents]
    energy = torch.stack([code.double().square().sum(0) for code in codes]).sum(0)
    first, rest = strongest(energy)
    drawn = rest[torch.randperm(len(rest), generator=generator)[:DRAWN]]
    chosen = [*first.tolist(), *drawn.tolist()]
    return Shown(energy, {feature: _contexts(feature, codes, documents) for feature in chosen})


def strongest(energy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The features with the greatest energy, of `[q]`, greatest first, and the others that are ever active."""
    alive = (energy > 0).nonzero()[:, 0]
    order = energy[alive].argsort(descending=True, stable=True)
    return alive[order[:STRONGEST]], alive[order[STRONGEST:]]


def _contexts(number: int, codes: Sequence[torch.Tensor], documents: Sequence[Document]) -> list[Context]:
    """Of different documents, so that one does not fill the page."""
    peaks = []
    for index, code in enumerate(codes):
        greatest, where = code[:, number].max(0)
        if greatest > 0:
            peaks.append((-float(greatest), index, int(where)))
    contexts = []
    for _, chosen, place in sorted(peaks)[:CONTEXTS]:
        document, positions = documents[chosen], documents[chosen].positions
        values = [0.0] * len(document.ids)
        for position, value in zip(positions.tolist(), codes[chosen][:, number].tolist(), strict=True):
            values[position] = value
        centre = int(positions[place])
        window = slice(max(0, centre - BEFORE), centre + AFTER + 1)
        contexts.append(Context(document.ids[window], values[window], centre - window.start, document.number))
    return contexts


def histogram(density: torch.Tensor) -> list[tuple[float, float, int]]:
    """How many features are active how often: edges of log10 density and the count; features never active are not
    counted.
    """
    edges = torch.linspace(LOWEST, 0, BINS + 1, dtype=torch.double)
    alive = density[density > 0].double().log10().clamp(LOWEST, 0)
    counts = torch.histogram(alive, edges).hist
    return [
        (float(low), float(high), int(count)) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
