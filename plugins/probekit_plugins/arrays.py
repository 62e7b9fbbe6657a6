"""Tensors of a result as numpy arrays, as they are read back from disk: figures are computed of these. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy


def array(tensor: Any) -> numpy.ndarray[Any, Any]:
    """A tensor of torch, wherever it is, or what numpy takes for an array. What is bf16 comes as fp32."""
    import numpy

    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    return numpy.asarray(tensor)
