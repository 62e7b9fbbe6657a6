"""The model at rest: eval mode, frozen parameters, no cache, and everything given back afterwards.

With dropout on where that is asked for, which is training mode and nothing else of a training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from probekit.models.passes import evaluating, frozen, neutral_token, padding_token, switched, takes, without_cache


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters while open; each module's own mode and each parameter's own flag afterwards.

    Parameters that require gradients would make every backward pass compute theirs too: 2.3 times the cost of one
    block.
    """
    with (
        unpacked(model),
        frozen(model),
        evaluating(model),
    ):
        yield


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """bitsandbytes' layers as they are, while open and afterwards.

    On some CPUs 4-bit layers would rewrite their weights at the first forward without gradients, for a kernel that has
    no gradient. And their forward casts biases for good, to the type that it computes in.
    """
    layers = [part for part in model.modules() if type(part).__module__.startswith("bitsandbytes")]
    repacking = [layer for layer in layers if vars(layer).get("support_avx512bf16_for_cpu")]
    biases = [layer.bias for layer in layers if isinstance(layer.bias, nn.Parameter)]
    values = [bias.data for bias in biases]
    types = [{name: value for name, value in vars(layer).items() if name.startswith("compute_")} for layer in layers]
    try:
        with switched(repacking, "support_avx512bf16_for_cpu", False):
            yield
    finally:
        for bias, value in zip(biases, values, strict=True):
            bias.data = value
        for layer, found in zip(layers, types, strict=True):
            vars(layer).update(found)


@contextmanager
def resting(model: nn.Module, settled: bool) -> Iterator[None]:
    """`at_rest`, without walking over a model that `load` has already settled and nobody has put into training
    since.
    """
    if settled and not model.training:
        yield
    else:
        with at_rest(model):
            yield


@contextmanager
def dropping_out(model: nn.Module) -> Iterator[None]:
    """Training mode while open, inside `resting`: dropout draws masks from torch's default generator, each time anew.

    Modules that a forward pass in training mode would change, such as a batch norm, stay in eval. Nothing is
    checkpointed: the backward pass would compute blocks again, after the modes are given back, without their masks.
    """
    quiet = [module for module in model.modules() if not module.training and not _learns(module)]
    checkpointing = [module for module in model.modules() if vars(module).get("gradient_checkpointing")]
    with switched(checkpointing, "gradient_checkpointing", False), switched(quiet, "training", True):
        yield


def _learns(module: nn.Module) -> bool:
    """Whether a module keeps statistics of what it sees in training: those of a norm, or the `u` of a spectral norm."""
    return any("running" in name or "tracked" in name or name.endswith("_u") for name in module._buffers)


def forward(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    positions: bool = False,
    **inputs: Any,
) -> Any:
    """The model's own forward on token ids, without a cache of its making; without the mask where it takes none.

    With `positions` it is told that each prompt's positions count from where its padding ends, as `generate` does.
    `inputs` are more that it takes, such as a cache to read.
    """
    if attention_mask is not None:
        mask = attention_mask.to(input_ids.device)
        if takes(model, "attention_mask"):
            inputs["attention_mask"] = mask
        if positions:
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=input_ids, **inputs, **without_cache(model))


def stand_in_ids(
    model: nn.Module, batch: int, sequence: int, device: torch.device, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Token ids for a forward whose embeddings are substituted: of their values only where padding stands matters."""
    ids = torch.full((batch, sequence), neutral_token(model), device=device)
    padding = padding_token(model)
    if attention_mask is None or padding is None:
        return ids
    return ids.masked_fill(attention_mask.to(device) == 0, padding)
