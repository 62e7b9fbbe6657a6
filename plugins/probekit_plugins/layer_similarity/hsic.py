"""The unbiased estimator of the Hilbert–Schmidt independence criterion (HSIC), for linear kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def centred_gram(rows: torch.Tensor) -> torch.Tensor:
    """The Gram matrix `K = X Xᵀ` of rows `[n, width]`, without its diagonal and U-centred, `[n, n]`, n ≥ 4.

    `A_ij = K_ij − Σ_k K_ik/(n − 2) − Σ_k K_kj/(n − 2) + Σ_kl K_kl/((n − 1)(n − 2))` off the diagonal, 0 on it, where
    the sums leave the diagonal out (Székely and Rizzo 2014). A does not depend on the mean of the rows, which is taken
    off first so that nothing cancels.
    """
    n = len(rows)
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    gram.fill_diagonal_(0)
    sums = gram.sum(0)
    centred = gram - sums[:, None] / (n - 2) - sums / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0)


def hsic(centred: Sequence[torch.Tensor]) -> torch.Tensor:
    """HSIC₁ of every pair of centred Gram matrices, `[sites, sites]`: `Σ_ij A_ij B_ij / (n (n − 3))`.

    It is `[tr(K̃ L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n − 1)(n − 2)) − 2 · 1ᵀK̃L̃1 / (n − 2)] / (n (n − 3))`, with K̃ and L̃ the Gram
    matrices without their diagonals (Song et al. 2012, eq. 5; Nguyen et al. 2021, eq. 3).
    """
    n = len(centred[0])
    flat = torch.stack([matrix.flatten() for matrix in centred])
    return flat @ flat.T / (n * (n - 3))
