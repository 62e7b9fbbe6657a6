"""The precision that analyses compute in, whatever the model's is."""

from __future__ import annotations

import torch


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """The same in fp32, or in fp64 if that is what they are: what a narrower model computes is added up in fp32."""
    return values if values.dtype == torch.float64 else values.float()
