"""A copy of the subject's model that may be trained: the subject itself is never modified."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from probekit import Subject, UsageError
from probekit_plugins.training import is_quantised

if TYPE_CHECKING:
    from torch import nn


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
    """A copy in fp32 at least, whose parameters require gradients, and so its layer maps' activations too.

    It computes in eval mode, without dropout, also while it is trained.
    """
    model = copy.deepcopy(subject.model)
    model.zero_grad(set_to_none=True)
    model.eval()
    if next(model.parameters()).dtype not in (torch.float32, torch.float64):
        model.float()
    return wrapped(model.requires_grad_(True), subject)


def wrapped(model: nn.Module, subject: Subject) -> Subject:
    """A model that is like the subject's, with its tokenizer and its anatomy; what is frozen of it and what is not
    stays so.
    """
    known = subject.anatomy
    paths = {
        "blocks": known.blocks_path,
        "embedding": known.embedding_path,
        "norm": known.norm_path,
        "unembedding": known.unembedding_path,
    }
    return Subject(model, subject.tokenizer, anatomy=paths, settled=True)
