"""Figures of an autoencoder from what was measured, as it is kept: what was decoded, likelihoods, and directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from probekit_plugins.one_word_autoencoder.measure import Measured

Tensors = Mapping[str, torch.Tensor]
# What is kept of a training, by the beginning of its tensor's name.
DECODED, NLL, SHUFFLED, TOTAL, SPECTRUM = "decoded", "nll", "nll_shuffled", "sum_of_unit_vectors", "spectrum"
UNTRAINED = ", untrained"
# What a next segment is given, to what decodes and to the model as it was.
MEMORIES = ("memory", "another text's memory", "truncation", "no memory")
AS_IT_WAS = ("truncation, as it was", "no memory, as it was", "whole context, as it was")


@dataclass(frozen=True)
class Directions:
    """Of n vectors at norm 1, Z `[n, w]`: their sum `[w]`, and the eigenvalues of `Z Zᵀ`, but for zeros, `[min(n, w)]`.

    How near they are to each other, and how many directions they fill, follows from these.
    """

    total: torch.Tensor
    spectrum: torch.Tensor
    count: int

    @classmethod
    def of(cls, vectors: torch.Tensor) -> Directions:
        """Of vectors `[n, w]`, the k vectors of a text side by side; in float64."""
        unit = normalize(vectors.double(), dim=-1)
        gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit  # the same eigenvalues
        return cls(unit.sum(0), torch.linalg.eigvalsh(gram).clamp(min=0), len(unit))

    @property
    def mean_cosine(self) -> float:
        """The mean of `cos(E_i, E_j)` over all pairs i ≠ j: 1 where all vectors are the same."""
        return float((self.total.square().sum() - self.spectrum.sum()) / (self.count * (self.count - 1)))

    def coding_rate(self, distortion: float) -> float:
        """`R = ½ log det(I + w / (n ε²) Z Zᵀ)` in nats: greater, the more directions they fill (Ma et al., 2007)."""
        scale = len(self.total) / (self.count * distortion)
        return float((scale * self.spectrum).log1p().sum() / 2)


def kept(found: Measured, name: str) -> dict[str, torch.Tensor]:
    """What a result keeps of texts as a training encodes and decodes them, by name."""
    likelihoods = {f"{NLL}/{name}": found.nll, f"{SHUFFLED}/{name}": found.nll_shuffled}
    return first_kept(found, name) | likelihoods


def first_kept(found: Measured, name: str) -> dict[str, torch.Tensor]:
    """The same without likelihoods, which nothing is said of before a training."""
    lies = Directions.of(found.vectors)
    return {
        f"{DECODED}/{name}": found.decoded.int(),
        f"{TOTAL}/{name}": lies.total,
        f"{SPECTRUM}/{name}": lies.spectrum,
    }


def exact(decoded: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Which texts come back exactly, from the first token to the end, `[n]`; of `[n, T]`, where `wanted` is −1 behind
    a text.
    """
    return ((decoded == wanted) | (wanted < 0)).all(-1)


def figures(tensors: Tensors, name: str, wanted: torch.Tensor, distortion: float) -> dict[str, float]:
    """Shares, nats a token, and how the vectors are spread; from what is `kept`."""
    first, tokens = first_figures(tensors, name, wanted), (wanted >= 0).sum().item()
    nats = {figure: tensors[f"{figure}/{name}"].double().sum().item() / tokens for figure in (NLL, SHUFFLED)}
    # Greedy decoding of another text's vectors gives that text's decoding.
    shuffled = exact(tensors[f"{DECODED}/{name}"].roll(1, 0), wanted).double().mean().item()
    return {
        "exact": first["exact"],
        "exact_shuffled": shuffled,
        "token_accuracy": first["token_accuracy"],
        **nats,
        "cosine": first["cosine"],
        "coding_rate": _directions(tensors, name, wanted).coding_rate(distortion),
    }


def first_figures(tensors: Tensors, name: str, wanted: torch.Tensor) -> dict[str, float]:
    """Those that are known before a training as well."""
    decoded = tensors[f"{DECODED}/{name}"]
    return {
        "exact": exact(decoded, wanted).double().mean().item(),
        "token_accuracy": (decoded == wanted).sum().item() / (wanted >= 0).sum().item(),
        "cosine": _directions(tensors, name, wanted).mean_cosine,
    }


def _directions(tensors: Tensors, name: str, wanted: torch.Tensor) -> Directions:
    return Directions(tensors[f"{TOTAL}/{name}"], tensors[f"{SPECTRUM}/{name}"], len(wanted))


def memories(sums: torch.Tensor) -> list[dict[str, float]]:
    """Nats a token of each segment after the first, by what it was given; of their sums, and tokens."""
    each = sums[:, :-1] / sums[:, -1:].clamp(min=1)
    return [dict(zip((*MEMORIES, *AS_IT_WAS), values, strict=True)) for values in each.tolist()]
