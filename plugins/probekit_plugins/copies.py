"""A copy of the subject's model that may be trained: the subject itself is never modified."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import nn

from probekit import Subject, UsageError, out_of_memory
from probekit_plugins.training import is_quantised


class WithoutDropout(nn.Module):
    """A module that stays in eval mode whatever is asked for, and so do all modules in it.

    What holds a copy and is given to a trainer, which puts it in training mode, is one of these. Dropout would draw
    from a generator that a resumed training does not have, and layer maps freeze a model that is in training mode.
    """

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)


def check(subject: Subject, what: str) -> None:
    """Raise UsageError with one sentence, in which `what` says what is to be done, if no copy of it can be trained."""
    if not subject.has_logits:
        raise UsageError(f"{what} needs a model that predicts tokens; this one has no logits.")
    if is_quantised(subject):
        raise UsageError(f"{what} changes weights, so it needs an unquantised model; leave out --quantization.")
    devices = {parameter.device for parameter in subject.model.parameters()}
    if len(devices) != 1 or any(device.type == "meta" for device in devices):
        raise UsageError(f"{what} needs the whole model on one device; load it without --device-map.")


def copied(subject: Subject) -> Subject:
    """A copy as `model_of` makes it, as a subject, whose layer maps' activations require gradients too."""
    return wrapped(model_of(subject), subject)


def model_of(subject: Subject) -> nn.Module:
    """A copy of the model in fp32 at least, whose parameters require gradients.

    It computes in eval mode, without dropout; a module that holds it and is trained is a `WithoutDropout`. Hooks that
    others put on the model are on the copy as well, since what it computes may be theirs. Raises UsageError with one
    sentence if the model cannot be copied, such as for a hook that keeps what has a graph.
    """
    try:
        model = copy.deepcopy(subject.model)
    except (TypeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"No copy of this {type(subject.model).__name__} can be made: {reason}. Take off hooks that others put on "
            "it."
        ) from error
    model.zero_grad(set_to_none=True)
    model.eval()
    types = {parameter.dtype for parameter in model.parameters()}
    if any(kind.is_floating_point and kind.itemsize < torch.float32.itemsize for kind in types):
        model.to(torch.float64 if torch.float64 in types else torch.float32)
    return model.requires_grad_(True)


def wrapped(model: nn.Module, subject: Subject) -> Subject:
    """A model that is like the subject's, with its tokenizer and its anatomy; what is frozen of it and what is not
    stays so.
    """
    known = subject.anatomy
    paths: dict[str, str | int | None] = {
        "blocks": known.blocks_path,
        "embedding": known.embedding_path,
        "norm": known.norm_path,
        "unembedding": known.unembedding_path,
        "sequence": known.sequence,
    }
    return Subject(model, subject.tokenizer, anatomy=paths, settled=True)
