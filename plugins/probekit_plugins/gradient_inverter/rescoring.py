"""Re-scoring: the candidates of each position are told apart by what the layer makes of the tokens themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from probekit_plugins.gradient_inverter.objective import Objective, site_map
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.gradient_inverter import GradientInverterOptions

# So many rounding errors of the largest entry are no sign that an activation sees a later token.
ROUNDINGS = 8
# Entries of an activation that are computed at once, at most.
ENTRIES = 2**24

Losses = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Of token ids `[n, T]` that stand in these rows `[n]`, as far as they judge the token at a position: `[n]`."""


def sweep(
    candidates: torch.Tensor, open_: torch.Tensor, losses: Losses, context: Context, label: str, key: str
) -> torch.Tensor:
    """The best tokens of `[B, T, k]` candidates, position by position from the left: `[B, T]`.

    At position t each candidate stands in turn after the tokens that were chosen before it, and the one with the least
    loss stays:

        x_t = argmin_{c ∈ candidates_t} loss_t(x_1, …, x_{t−1}, c, …)

    Positions after t hold their first candidate, and so do positions that are not `open_`, `[B, T]`. T forward passes
    of B × k rows; a resumed run goes on at the position where it was.
    """
    chosen = candidates[..., 0].clone()
    count = candidates.shape[-1]
    with context.loop(label, candidates.shape[1], key) as loop:
        if loop.start:
            chosen.copy_(loop.state["chosen"])
        for position in range(loop.start, candidates.shape[1]):
            rows = open_[:, position].nonzero()[:, 0]
            if len(rows):
                offered = candidates[rows, position]
                tried = chosen[rows].repeat_interleave(count, 0)
                tried[:, position] = offered.flatten()
                found = losses(tried, rows.repeat_interleave(count), position).view(-1, count)
                best = torch.nan_to_num(found, nan=torch.inf).argmin(1, keepdim=True)
                chosen[rows, position] = offered.gather(1, best)[:, 0]
            loop.end_step(lambda: {"chosen": chosen})
    return chosen


class Judge:
    """How well a token fits at a position, by a forward pass of tokens through `O`.

    In a causal model the activation at a position follows from the tokens up to it, so that it judges its own token
    alone, and positions after it need not be computed. Where a position's activation is not matched, or the model is
    not causal, the whole loss judges, over all positions that are matched. Models whose blocks read the token ids again
    are given those of the candidates, never the prompt's.
    """

    def __init__(
        self,
        subject: Subject,
        site: str,
        options: GradientInverterOptions,
        ids: torch.Tensor,
        padding: torch.Tensor | None,
        target: torch.Tensor,
        mask: torch.Tensor,
    ) -> None:
        """Of P prompts: `ids`, `padding` and `mask`, 1 where an activation is matched, `[P, T]`; target `[P, T, w]`."""
        self._subject, self._site = subject, site
        self._options = options
        self._padding, self._target, self._mask = padding, target, mask
        self._real = torch.ones_like(ids) if padding is None else padding
        self._is_causal = self._looks_back_only(ids)
        self.most_at_once = max(1, ENTRIES // target[0].numel())

    def _looks_back_only(self, ids: torch.Tensor) -> bool:
        """Whether another last token leaves the longest prompt's activations before it as they are: tried out."""
        if self._subject.anatomy.sequence is not None or self._target.shape[1] != ids.shape[1]:
            return False
        first = ids[self._real.sum(1).argmax()][None]
        other = first.clone()
        other[0, -1] = (first[0, -1] + 1) % self._subject.vocabulary
        options = self._options.model_copy(update={"dropout": False})
        with torch.no_grad():
            first_of, other_of = (
                site_map(self._subject, self._site, options, each)(self._subject.embed(each))[0, :-1]
                for each in (first, other)
            )
        moved = at_least_single(first_of) - at_least_single(other_of)
        rounding = ROUNDINGS * torch.finfo(first_of.dtype).eps * at_least_single(first_of).abs()
        return not len(moved) or bool(moved.abs().max() <= rounding.max())

    def heard(self, prompts: torch.Tensor) -> torch.Tensor:
        """Which tokens of these prompts `[B]` any matched activation can follow from: `[B, T]`."""
        real = self._real[prompts] > 0
        if not self._is_causal:
            return real
        matched = self._mask[prompts.to(self._mask.device)].to(real.device)
        return real & (matched.flip(1).cumsum(1).flip(1) > 0)

    def losses(self, ids: torch.Tensor, prompts: torch.Tensor, position: int) -> torch.Tensor:
        """What judges the token at a position of ids `[n, T]`, which stand for these prompts `[n]`: `[n]`."""
        there = prompts.to(self._target.device)
        weights = self._mask[there]
        end = ids.shape[1]
        if self._is_causal:
            own = weights[:, position] > 0
            alone = torch.nn.functional.one_hot(torch.tensor(position), end).to(weights)
            weights = torch.where(own[:, None], alone, weights)
            if bool(own.all()):
                end = position + 1
        padding = None if self._padding is None else self._padding[prompts, :end]
        if padding is not None and bool(padding.all()):
            padding = None
        ids, target = ids[:, :end], self._target[there]
        layer_map = site_map(self._subject, self._site, self._options, ids, padding)
        if self._is_causal:
            target, weights = target[:, :end], weights[:, :end]
        objective = Objective(layer_map, target, weights, self._options)
        return objective(at_least_single(self._subject.embed(ids)))
