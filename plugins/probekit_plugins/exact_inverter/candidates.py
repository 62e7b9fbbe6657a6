"""Which tokens to try at a position, and in what order: by the regression, by the gradient, then all that are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from probekit import ModelError, UsageError
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Subject
    from probekit_plugins.exact_inverter import SearchOptions

# The first batch of candidates, and how much larger each next one is.
FIRST, GROWTH = 32, 4
# Tokens left from which on the gradient policy is worth its steps, rather than to try all of them at once.
WORTH = 4096
# The gradient policy: starts, and tokens near each of them that are proposed at a step.
STARTS, NEAR = 4, 8


def candidates(
    scores: torch.Tensor,
    distances: torch.Tensor,
    along_descent: Callable[[], Iterator[torch.Tensor]],
    options: SearchOptions,
    first: int = FIRST,
) -> Iterator[tuple[torch.Tensor, bool]]:
    """Batches of untried token ids, each with whether the gradient policy proposed them.

    `scores` `[V]` say how likely each token is; `distances` `[V]` are infinite for tokens that were not tried yet, and
    are to be filled in for each batch before the next one is asked for. The `first` batch is of that many.
    """
    order = scores.argsort(descending=True, stable=True)
    size, begun = first, 0
    while begun < min(options.proposals, len(order)):
        batch = order[begun : min(begun + size, options.proposals)]
        begun += len(batch)
        size *= GROWTH
        untried = batch[distances[batch].isinf()]
        if len(untried):
            yield untried, False
    if options.gradient_steps and int(distances.isinf().sum()) > WORTH:
        for batch in along_descent():
            yield batch, True
    if options.scan:
        left = order[distances[order].isinf()]
        if len(left):
            yield left, False


def along_descent(
    subject: Subject,
    site: str,
    prefix: torch.Tensor,
    wanted: torch.Tensor,
    distances: torch.Tensor,
    steps: int,
) -> Iterator[torch.Tensor]:
    """The gradient policy, after SIPIT: untried tokens whose embeddings are nearest to a descent on the embedding `e`
    at one position,

        e ← e − Adam(∇_e ‖O_l(w_prefix, e)_t − a_t‖² / ‖a_t‖²),

    from the embeddings of the nearest tokens that were tried. `wanted` is `a_t`, `[w]`. Nothing is proposed where a
    model has no such gradient.
    """
    matrix = subject.embedding_matrix
    starts = distances.topk(min(STARTS, len(distances)), largest=False).indices
    ids = torch.cat([prefix.expand(len(starts), -1), starts[:, None].to(prefix)], 1)
    before = at_least_single(subject.embed(ids))[:, :-1]
    e = matrix[starts.to(matrix.device)].clone().requires_grad_()
    optimizer = torch.optim.Adam([e], lr=float(matrix.std()) / 4)
    halved_norms = matrix.square().sum(1) / 2
    try:
        layer_map = subject.layer_map(site, ids if subject.reads_ids(site) else None)
        for _ in range(steps):
            with torch.enable_grad():
                reached = at_least_single(layer_map(torch.cat([before, e.to(before)[:, None]], 1))[:, -1]).to(wanted)
                loss = (reached - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)
                (gradient,) = torch.autograd.grad(loss, e)
            if not bool(gradient.isfinite().all()):
                return
            e.grad = gradient
            optimizer.step()
            with torch.no_grad():
                nearness = e @ matrix.T - halved_norms
                untried = distances.isinf()
                if not bool(untried.any()):
                    return
                nearness[:, ~untried.to(nearness.device)] = -torch.inf
                batch = nearness.topk(min(NEAR, int(untried.sum())), dim=1).indices.unique().to(distances.device)
            yield batch[untried[batch]]
    except (ModelError, UsageError):
        return
