"""Kullback–Leibler divergences, in nats."""

from __future__ import annotations

import torch


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """`KL(p ‖ q) = Σ_i p_i (log p_i − log q_i)` of discrete distributions `[…, n]`, in nats: `[…]`.

    Infinite where p is not absolutely continuous with respect to q: where a q_i is 0 and p_i is not. Raises ValueError
    if something is no distribution.
    """
    for name, values in (("p", p), ("q", q)):
        if bool((values < 0).any()) or not torch.allclose(values.sum(-1), values.new_ones(()), atol=1e-4):
            raise ValueError(f"{name} is no distribution along its last axis: expected figures ≥ 0 that sum to 1.")
    terms: torch.Tensor = torch.special.xlogy(p, p) - torch.where((p == 0) & (q == 0), 0, torch.special.xlogy(p, q))
    return terms.sum(-1)


def kl_of_logits(logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """`KL(softmax(logits) ‖ softmax(others))` of `[…, n]`, in nats: `[…]`."""
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kl_to_standard_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """`KL(N(μ, σ²) ‖ N(0, 1)) = ½ (μ² + σ² − log σ² − 1)` of each entry, in nats."""
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2


def kl_of_normals(
    mean: torch.Tensor, variance: torch.Tensor, other_mean: torch.Tensor, other_variance: torch.Tensor
) -> torch.Tensor:
    """`KL(N(μ, σ²) ‖ N(m, s²)) = ½ (log s²/σ² + (σ² + (μ − m)²)/s² − 1)` of each entry, in nats.

    Infinite where s² is 0 and σ² or μ − m is not.
    """
    spread = variance + (mean - other_mean).square()
    same = (other_variance == 0) & (spread == 0)
    found = (other_variance.log() - variance.log() + spread / other_variance - 1) / 2
    return torch.where(same, 0.0, torch.where(other_variance == 0, torch.inf, found))
