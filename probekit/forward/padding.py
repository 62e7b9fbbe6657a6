"""Padding: prompts of unequal length in one batch, and whether a model gives each what it has alone.

Whether it does depends on the architecture: on where it takes positions from, and on whether its blocks look at padding
that the mask hides. So it is tried, on the very batch: the prompt with the most padding is run alone. Where positions
count from the padding's beginning, the model is told those that count from its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from probekit.errors import UsageError
from probekit.forward.capture import capture
from probekit.forward.rest import resting, stand_in_ids
from probekit.forward.sites import Site
from probekit.models.anatomy import Anatomy
from probekit.models.passes import takes


def padded(
    model: nn.Module, prompts: Sequence[torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts, each `[1, sequence]`, as a batch padded on the right, and its mask: both `[batch, longest]`."""
    lengths = [prompt.shape[1] for prompt in prompts]
    mask = torch.stack([torch.arange(max(lengths), device=device) < length for length in lengths]).long()
    ids = stand_in_ids(model, len(prompts), max(lengths), device, mask)
    for row, prompt, length in zip(ids, prompts, lengths, strict=True):
        row[:length] = prompt[0]
    return ids, mask


class Padding:
    """What a model does with padding, tried once for each site and side."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, settled: bool) -> None:
        self._model = model
        self._anatomy = anatomy
        self._settled = settled
        self._positions: dict[tuple[str, str], bool] = {}

    def check(
        self,
        sites: Mapping[str, Site],
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor,
        device: torch.device,
    ) -> bool:
        """Whether the model has to be told its positions, so that the prompt with the most padding has the activations
        that it has alone.

        Without token ids any others do. Masks that hide something else than one end of a prompt are the caller's own
        matter. Raises UsageError if it does not have them even then.
        """
        mask = attention_mask.to(device)
        if bool(mask.all()):
            return False
        batch, sequence = mask.shape
        ids = stand_in_ids(self._model, batch, sequence, device, mask) if input_ids is None else input_ids.to(device)
        if ids.shape[1] != sequence or 1 < batch != len(ids) > 1:
            raise UsageError(
                f"The attention mask has the shape {tuple(mask.shape)}, the token ids {tuple(ids.shape)}; give one "
                "number for each token."
            )
        row = int(mask.bool().sum(1).argmin())
        places = mask[row].nonzero().flatten()
        if len(places) == 0:
            raise UsageError(f"The attention mask hides all of prompt {row}; leave that prompt out.")
        start, end = int(places[0]), int(places[-1]) + 1
        if end - start != len(places):
            return False
        side = "left" if start else "right"
        untried = {site.name: site for site in sites.values() if (side, site.name) not in self._positions}
        if untried:
            prompt = ids[row if len(ids) > 1 else 0][None]
            told = self._try(untried, prompt, mask[row : row + 1], slice(start, end))
            if told is None:
                raise UsageError(
                    f"With padding on the {side}, {type(self._model).__name__} does not give a prompt the activation "
                    f"at '{next(iter(untried))}' that it has alone; "
                    f"{'pad on the right, or give' if start else 'give'} prompts of one length at a time."
                )
            self._positions |= {(side, name): told for name in untried}
        return any(self._positions[side, site.name] for site in sites.values())

    def _try(self, sites: Mapping[str, Site], ids: torch.Tensor, mask: torch.Tensor, own: slice) -> bool | None:
        """Whether positions have to be told; None where that does not help either."""
        with resting(self._model, self._settled):
            alone = capture(self._model, sites, self._anatomy.rows(ids[:, own]))
            for told in (False, True) if own.start and takes(self._model, "position_ids") else (False,):
                try:
                    padded = capture(self._model, sites, self._anatomy.rows(ids), mask, told)
                except Exception as error:
                    if not told or isinstance(error, torch.OutOfMemoryError):
                        raise
                    continue  # it takes no positions, or not those
                if all(_same(activation[:, own], alone[name]) for name, activation in padded.items()):
                    return told
        return None


def _same(padded: torch.Tensor, alone: torch.Tensor) -> bool:
    if alone.dim() != 3:  # the output of a module path, whose axes are not known
        return True
    tolerance = 1e-3 if alone.dtype in (torch.float32, torch.float64) else 0.03
    difference = padded.float() - alone.float() if padded.shape == alone.shape else alone.float() * torch.inf
    return bool(difference.norm() <= tolerance * alone.float().norm())
