"""What short trainings have in common: whom they refuse, gradients without dropout, and the state to go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from probekit import AnalysisError

if TYPE_CHECKING:
    from probekit import Subject


def is_quantised(subject: Subject) -> bool:
    """Whether the model's weights are quantised, and so not weights that a step of descent could change."""
    loaded = any(getattr(subject.model, f"is_loaded_in_{bits}", False) for bits in ("8bit", "4bit"))
    return loaded or getattr(subject.model, "hf_quantizer", None) is not None


def backward(loss: torch.Tensor, model: nn.Module) -> None:
    """The gradients of a loss. Raises AnalysisError where the model has none in eval mode, which is how it is trained
    here: without dropout.
    """
    try:
        loss.backward()
    except (AssertionError, NotImplementedError) as error:
        raise AnalysisError(
            f"{type(model).__name__} cannot be trained without dropout: it computes gradients of its own and refuses "
            f"them in eval mode ({(str(error).splitlines() or [''])[0]}). Give another architecture."
        ) from error


def state_of(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW, others: Callable[[], dict[str, torch.Tensor]]
) -> Callable[[], dict[str, torch.Tensor]]:
    """What the rest of a training follows from: weights, both moments, the optimiser's count of steps, and `others`."""

    def state() -> dict[str, torch.Tensor]:
        found = dict(others())
        for name, parameter in parameters.items():
            found[f"weight/{name}"] = parameter
            for kind, value in optimizer.state[parameter].items():
                found[f"{kind}/{name}"] = value
        return found

    return state


def restore(
    state: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> None:
    """Take weights, moments and the count of steps from a state."""
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(state[f"weight/{name}"])
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            if f"{kind}/{name}" in state:  # a weight that gets no gradient has none
                value = state[f"{kind}/{name}"]
                optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
