"""Low-rank adapters (LoRA) beside the linear layers of a copy of the subject's blocks, by peft.

`W x + (α / r) B A x`, with `A` `[r, in]` and `B` `[out, r]` trained and W frozen; B begins at zero, so that the copy
computes what the subject does until it is trained. Hu et al. (2021), arXiv 2106.09685.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from probekit import UsageError
from probekit_plugins import copies

if TYPE_CHECKING:
    from probekit import Subject


def peft(what: str) -> ModuleType:
    """The package. Raises UsageError with one sentence, in which `what` says what needs it, if it is not installed."""
    try:
        import peft as package
    except ImportError:
        raise UsageError(
            f"{what} needs the package peft, which is not installed: pip install 'probekit[lora]'."
        ) from None
    found: ModuleType = package
    return found


def linear_layers(subject: Subject) -> list[str]:
    """Paths of the linear layers in the blocks, found by what they are; GPT-2's, which are transposed, among them.

    Those of torch's own attention are not: it reads their weights, and an adapter beside them would do nothing.
    """
    return [
        f"{path}.{name}"
        for path in subject.anatomy.block_paths
        for name, module in subject.model.get_submodule(path).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]


def check(subject: Subject, what: str) -> None:
    """Raise UsageError with one sentence if no adapters can be trained beside this model."""
    peft(what)
    copies.check(subject, what)
    if not linear_layers(subject):
        raise UsageError(f"{what} needs linear layers in the blocks, and this model has none there; train it in full.")


def adapted(subject: Subject, rank: int, alpha: float, seed: int) -> Subject:
    """A copy of the subject with an adapter beside each linear layer of its blocks.

    The adapters' weights follow from the seed, torch's own generator stays as it is. They alone require gradients:
    `trained(copy)` are they. Raises UsageError if peft is not installed, or refuses the model's layers, as Mamba's.
    """
    package = peft("LoRA")
    layers = linear_layers(subject)
    model = copies.model_of(subject).requires_grad_(False)
    known = {id(parameter) for parameter in model.parameters()}
    config = package.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=layers)
    # peft says of each transposed layer that it noticed.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        torch.default_generator.manual_seed(seed)  # not torch's own: that would seed every device
        try:
            package.inject_adapter_in_model(config, model)
        except ValueError as error:
            reason = (str(error).splitlines() or [""])[0].partition(". ")[0].rstrip(".")
            raise UsageError(
                f"peft puts no adapters into {type(subject.model).__name__} ({reason}); train it in full."
            ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) not in known)
    model.eval()
    return copies.wrapped(model, subject)


def trained(subject: Subject) -> dict[str, nn.Parameter]:
    """The parameters of a copy that require gradients, by name: adapters, or all there are."""
    return {name: parameter for name, parameter in subject.model.named_parameters() if parameter.requires_grad}
