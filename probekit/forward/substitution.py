"""Substitution: whether a model computes the same from embeddings that are put in as from the token ids themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from probekit.errors import ModelError

# The activation at a site: from token ids, and from their embeddings by a layer map with these ids, or none, beside it.
FromIds = Callable[[torch.Tensor], torch.Tensor]
FromEmbeddings = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def reads_ids(model: nn.Module, ids: torch.Tensor, from_ids: FromIds, from_embeddings: FromEmbeddings) -> bool:
    """Whether what runs up to a site reads the token ids again, so that a layer map needs them beside the embeddings.

    Raises ModelError if it does not give what the plain forward gives even then.
    """
    plain = from_ids(ids)
    for given in (None, ids):
        if close(plain, from_embeddings(ids, given)):
            return given is not None
    kind = type(model).__name__
    if not close(plain, from_ids(ids)):
        raise ModelError(
            f"{kind} gives another activation each time that it reads the same tokens: it draws random numbers in eval "
            "mode; switch that off in its config (as reformer's `hash_seed` does)."
        )
    raise ModelError(
        f"Substituting token embeddings in {kind} does not give what its plain forward gives, so probekit cannot "
        "analyse it; declare the right embedding with the hook probekit_anatomy."
    )


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two activations are the same within rounding."""
    return torch.allclose(one.float(), other.float(), rtol=1e-4, atol=1e-5, equal_nan=True)
