"""Texts continued token by token by anything that predicts the next one: greedily, or by sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch

from probekit import AnalysisError
from probekit_plugins.precision import at_least_single


def continued(
    next_logits: Callable[[torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
    steps: int,
    end: int | None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """`ids` `[n, t]` with up to `steps` tokens behind each, `[n, t + m]`.

    `next_logits` gives `[n, V]` of what follows `[n, t]`. Greedy without a generator; with one, sampled at temperature
    1 by it, on the CPU. What ended a text is repeated behind it; m is less than `steps` where all have ended. What
    `ids` hold ends nothing: `end` may be what stands before a text as well. Raises AnalysisError if logits are NaN.
    """
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    with torch.no_grad():
        for _ in range(steps):
            logits = next_logits(ids)
            if bool(logits.isnan().any()):
                raise AnalysisError("The logits of what follows a text are NaN, so that it cannot be continued.")
            if generator is None:
                chosen = logits.argmax(-1)
            else:
                drawn = torch.multinomial(at_least_single(logits).softmax(-1).cpu(), 1, generator=generator)[:, 0]
                chosen = drawn.to(ids.device)
            if end is not None:
                chosen = torch.where(ended, end, chosen)
                ended |= chosen == end
            ids = torch.cat([ids, chosen[:, None]], 1)
            if end is not None and bool(ended.all()):
                break
    return ids


def until_end(row: list[int], end: int | None) -> list[int]:
    """The tokens before the one that ends a text."""
    return row[: row.index(end)] if end is not None and end in row else row
