"""What drives the vectors of different texts apart.

All take vectors `[n, w]`, the k vectors of a text side by side, and look at their directions alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from probekit_plugins.one_word_autoencoder import OneWordAutoencoderOptions, Repulsion


def info_nce(vectors: torch.Tensor, temperature: float) -> torch.Tensor:
    """The repulsive part of InfoNCE, `mean_i log Σ_{j≠i} exp(cos(E_i, E_j) / τ)` (Chen et al., 2002.05709).

    The source's equation 2, whose `sin` is the similarity; there the sum is over j = i as well, which for a small τ
    outweighs all else.
    """
    unit = normalize(vectors, dim=-1)
    same = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    scores = (unit @ unit.T / temperature).masked_fill(same, -torch.inf)
    return torch.logsumexp(scores, -1).mean()


def coding_rate(vectors: torch.Tensor, distortion: float) -> torch.Tensor:
    """`R = ½ log det(I + w / (n ε²) Z Zᵀ)` in nats, Z the n vectors at norm 1 (Ma et al., 2007).

    What it takes to tell the vectors up to an error of ε: greater, the more directions they fill.
    """
    unit = normalize(vectors, dim=-1)
    count, width = unit.shape
    gram = unit @ unit.T if count <= width else unit.T @ unit  # the same determinant
    identity = torch.eye(len(gram), dtype=unit.dtype, device=unit.device)
    # By Cholesky: the matrix is positive definite.
    factor = torch.linalg.cholesky(identity + width / (count * distortion) * gram)
    rate: torch.Tensor = factor.diagonal().log().sum()
    return rate


def repulsion(kind: Repulsion, vectors: torch.Tensor, options: OneWordAutoencoderOptions) -> torch.Tensor:
    """The loss `L_1` of a batch, in nats: what is made small."""
    if kind == "info-nce":
        return info_nce(vectors, options.temperature)
    rate = coding_rate(vectors, options.distortion)
    return rate if kind == "coding-rate-as-printed" else -rate
