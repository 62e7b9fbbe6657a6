"""Padding: prompts of unequal length in one batch, and whether a model gives each what it has alone.

Whether it does depends on the architecture: on where it takes positions from, and on whether its blocks look at padding
that the mask hides. So it is tried, on a small prompt with padding and without. Where positions count from where the
padding begins, the model is told those that count from where it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from probekit.errors import UsageError, out_of_memory
from probekit.forward.capture import capture
from probekit.forward.edit import unedited
from probekit.forward.layout import Layout, probe_ids
from probekit.forward.rest import resting, stand_in_ids
from probekit.models.anatomy import Anatomy
from probekit.models.passes import context_of, padding_token, takes


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
    """What a model does with padding on the left and on the right of a prompt, tried once for each block."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, layout: Layout, settled: bool) -> None:
        self._model = model
        self._anatomy = anatomy
        self._layout = layout
        self._settled = settled
        self._tried: dict[tuple[str, str], bool | None] = {}

    def check(self, sites: Iterable[str], attention_mask: torch.Tensor, shape: torch.Size | None) -> bool:
        """Whether the model has to be told its positions, so that padded prompts have the activations that they have
        alone at these sites.

        Masks of more than two axes, and those that hide something between tokens of a prompt, are the caller's own
        matter. Raises UsageError if it does not give them even then, or for a mask of another shape than the ids'.
        """
        if attention_mask.dim() != 2:
            return False
        batch, length = attention_mask.shape
        if shape is not None and (length != shape[1] or batch not in (1, shape[0])):
            raise UsageError(
                f"The attention mask has the shape {tuple(attention_mask.shape)}, the token ids {tuple(shape)}; give "
                "one number for each token."
            )
        shown = attention_mask.bool()
        if bool((~shown.any(1)).any()):
            row = int((~shown.any(1)).nonzero()[0])
            raise UsageError(f"The attention mask hides all of prompt {row}; leave that prompt out.")
        sides = {"left": not bool(shown[:, 0].all()), "right": not bool(shown[:, -1].all())}
        told = False
        for side in (side for side, hidden in sides.items() if hidden):
            for site in sites:
                told |= site != "embedding" and self._told(side, site)  # nothing is mixed there
        return told

    def _block(self, site: str) -> str:
        """The block that speaks for a site: itself, the one that it is part of, or the last."""
        blocks = zip(self._anatomy.blocks, self._anatomy.block_paths, strict=True)
        module = self._layout.site(site).module
        inside = (index for index, (_, path) in enumerate(blocks) if f"{site}.".startswith(f"{path}."))
        same = (index for index, block in enumerate(self._anatomy.blocks) if block is module)
        return f"block.{next(same, next(inside, len(self._anatomy.blocks) - 1))}"

    def _told(self, side: str, site: str) -> bool:
        block = self._block(site)
        if (side, block) not in self._tried:
            self._tried[side, block] = self._try(side, block)
        told = self._tried[side, block]
        if told is None:
            raise UsageError(
                f"With padding on the {side}, {type(self._model).__name__} does not give a prompt the activation at "
                f"'{self._layout.site(site).name}' that it has alone; "
                f"{'pad on the right, or give' if side == 'left' else 'give'} prompts of one length at a time."
            )
        return told

    def _try(self, side: str, block: str) -> bool | None:
        """Whether positions have to be told; None where that does not help either."""
        probe = probe_ids(self._model, self._anatomy)
        total = min(5, len(probe[0]) + 1, context_of(self._model) or 5)
        count = total // 2
        if count == 0 or self._anatomy.sequence is not None:  # nothing of one length is padded
            return False
        prompt, hidden = probe[:, count - total :], probe[:, :1].expand(1, count)
        if (padding := padding_token(self._model)) is not None:
            hidden = torch.full_like(hidden, padding)
        left = side == "left"
        ids = torch.cat([hidden, prompt] if left else [prompt, hidden], 1)
        masks = [torch.zeros_like(hidden), torch.ones_like(prompt)]
        mask = torch.cat(masks if left else masks[::-1], 1)
        site = {block: self._layout.site(block)}
        with resting(self._model, self._settled), unedited():
            alone = capture(self._model, site, self._anatomy.rows(prompt))[block]
            for told in (False, True) if left and takes(self._model, "position_ids") else (False,):
                try:
                    padded = capture(self._model, site, self._anatomy.rows(ids), mask, told)[block]
                except Exception as error:
                    if not told or out_of_memory(error):
                        raise
                    continue  # it takes no positions, or not those
                own = padded[:, count:] if left else padded[:, : prompt.shape[1]]
                if _same(own, alone):
                    return told
        return None


def _same(padded: torch.Tensor, alone: torch.Tensor) -> bool:
    tolerance = 1e-3 if alone.dtype in (torch.float32, torch.float64) else 0.03
    close = padded.shape == alone.shape and (padded.float() - alone.float()).norm() <= tolerance * alone.float().norm()
    return bool(close)
