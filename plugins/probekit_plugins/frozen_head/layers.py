"""The layers of a model in training, and the sizes of their weights, gradients and changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from probekit import Anatomy

# The weights of every layer at one moment, layer by layer.
Snapshot = list[list[torch.Tensor]]


class Layers:
    """The parameters of the token embedding, of each block and of the head.

    What lies between them, such as a position embedding or the final norm, is trained but belongs to no layer.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        parts = [
            model.get_submodule(anatomy.embedding_path),
            *(model.get_submodule(path) for path in anatomy.block_paths),
            model.get_submodule(str(anatomy.unembedding_path)),
        ]
        self._parameters = [list(part.parameters()) for part in parts]

    def weight_norms(self) -> torch.Tensor:
        """`‖W‖` of each layer, `[layers]`: the L2 norm over all of its parameters."""
        return torch.stack([_norm(group) for group in self._parameters])

    def gradient_norms(self) -> torch.Tensor:
        """`‖∇_W loss‖` of each layer, `[layers]`; a frozen parameter has none, which counts as 0."""
        return torch.stack(
            [
                _norm([each.grad if each.grad is not None else torch.zeros_like(each) for each in group])
                for group in self._parameters
            ]
        )

    def snapshot(self) -> Snapshot:
        """The weights as they are now."""
        return [[parameter.detach().clone() for parameter in group] for group in self._parameters]

    def relative_changes(self, start: Snapshot) -> torch.Tensor:
        """`‖W − W_start‖ / ‖W_start‖` of each layer, `[layers]`; 0 for one that begins at 0."""
        changes = [
            _norm([parameter.detach() - was for parameter, was in zip(group, before, strict=True)])
            for group, before in zip(self._parameters, start, strict=True)
        ]
        sizes = torch.stack([_norm(before) for before in start])
        return torch.stack(changes) / torch.where(sizes > 0, sizes, torch.inf)


def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total: torch.Tensor = torch.stack([tensor.detach().norm() for tensor in tensors]).norm()
    return total.double().cpu()
