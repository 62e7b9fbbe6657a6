"""The model at rest: eval mode, frozen parameters, no cache, and everything given back afterwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from probekit.models.anatomy import neutral_token


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters while open; each module's own mode and each parameter's own flag afterwards.

    Parameters that require gradients would make every backward pass compute theirs too: 2.3 times the cost of one
    block.
    """
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


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


@cache
def _takes_use_cache(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters
    return "use_cache" in parameters or any(part.kind is part.VAR_KEYWORD for part in parameters.values())


def forward(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> Any:
    """The model's own forward on token ids, without a cache."""
    arguments: dict[str, Any] = {"use_cache": False} if _takes_use_cache(type(model).forward) else {}
    if attention_mask is not None:
        arguments["attention_mask"] = attention_mask.to(input_ids.device)
    return model(input_ids=input_ids, **arguments)


def stand_in_ids(model: nn.Module, batch: int, sequence: int, device: torch.device) -> torch.Tensor:
    """Token ids for a forward whose embeddings are substituted: their values do not matter, but they are no padding."""
    return torch.full((batch, sequence), neutral_token(model), device=device)
