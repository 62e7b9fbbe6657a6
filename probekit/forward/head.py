"""The head: a model's way from its last block's activation to logits, and whether that is all that it does."""

from __future__ import annotations

import torch
from torch import nn

from probekit.errors import ModelError, UsageError
from probekit.forward.layout import Layout, probe_ids
from probekit.models.anatomy import Anatomy
from probekit.models.passes import trace


def head_width(anatomy: Anatomy) -> int | None:
    """The width of what the head reads after the norm; None if there is no head, or a projection before it."""
    weight = getattr(anatomy.unembedding, "weight", None)
    if weight is None:
        return None
    width = int(getattr(anatomy.unembedding, "in_features", weight.shape[-1]))
    normed = getattr(anatomy.norm, "weight", None)
    return width if normed is None or normed.shape[-1] == width else None


def reads_the_last_block(model: nn.Module, anatomy: Anatomy, layout: Layout) -> bool:
    """Whether the head gets the final norm of what the last block returned and nothing else, seen in one small forward.

    Not so where a transform, a scale or a sum over streams stands between: the head would read something that it was
    never made for.
    """
    head, norm, last = anatomy.unembedding, anatomy.norm, anatomy.blocks[-1]
    if head is None:
        return False
    ids = anatomy.rows(probe_ids(model, anatomy))
    with torch.no_grad():
        fired = {run.name: run for run in trace(model, {"last": last, "head": head}, ids)}
        if "head" not in fired or fired["head"].given is None or fired["last"].returned is None:
            return False
        given = fired["head"].given
        states = layout.blocks[-1].arrange(fired["last"].returned)
        if states.dim() != given.dim() or states.shape[-1] != given.shape[-1] or states.shape[1] < given.shape[1]:
            return False
        states = states if norm is None else norm(states)
    expected = states[:, -given.shape[1] :].to(given.device)  # a model may have dropped positions of its own in front
    apart = bool((expected - given).float().norm() > 0.01 * given.float().norm())  # not so of NaN, which is in both
    return bool(given.any()) and not apart


def unembed(anatomy: Anatomy, kind: str, width: int | None, activation: torch.Tensor, norm: bool) -> torch.Tensor:
    """`unembedding(norm(a))`, `[…, width]` → logits `[…, V]`.

    Raises ModelError if there is no head of that kind, UsageError if the activation has another width.
    """
    head = anatomy.unembedding
    if head is None:
        raise ModelError(f"{kind} has no unembedding.")
    if width is None:
        raise ModelError(
            f"{kind} does more to its activations than a norm before the head reads them; use the site 'logits'."
        )
    if activation.shape[-1] != width:
        raise UsageError(f"The head reads activations of width {width}, not {activation.shape[-1]}.")
    dtype = next(head.parameters()).dtype
    states = activation.to(dtype) if dtype.is_floating_point else activation
    if norm and anatomy.norm is not None:
        states = anatomy.norm(states)
    logits: torch.Tensor = head(states)
    return logits
