"""The proof that a model is untouched."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that an analysis must leave as it was, in a form that compares with `==`.

    The hooks of every module, and of all modules, by identity; the modules and parameters themselves; training and
    gradient flags; gradients; the bytes of every weight and buffer; and the bytes of the logits for fixed ids.
    """
    import torch
    from torch.nn.modules import module as everywhere

    from probekit.forward.trace import GLOBAL_HOOKS, HOOKS

    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    found: dict[str, Any] = {
        "hooks of every module": {name: [list(getattr(everywhere, name))] for name in GLOBAL_HOOKS},
        "hooks": {
            (name, kind): [(key, id(hook)) for key, hook in getattr(part, kind).items()]
            for name, part in modules.items()
            for kind in HOOKS
        },
        "forward methods": {
            name: id(vars(part)["forward"]) for name, part in modules.items() if "forward" in vars(part)
        },
        "modules": {name: (id(part), type(part)) for name, part in modules.items()},
        "parameters": {name: id(part) for name, part in parameters.items()},
        "training": {name: part.training for name, part in modules.items()},
        "requires_grad": {name: part.requires_grad for name, part in parameters.items()},
        "gradients": {name: None if part.grad is None else _content(part.grad) for name, part in parameters.items()},
        "weights": {name: _content(tensor) for name, tensor in model.state_dict().items() if hasattr(tensor, "dtype")},
        # Those as well that a checkpoint does not hold.
        "buffers": {name: _content(tensor) for name, tensor in model.named_buffers()},
    }
    training = [part for part in modules.values() if part.training]
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.arange(5)[None] * 7 % vocabulary
    try:
        for part in training:
            part.training = False  # dropout would make the logits differ by themselves
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    finally:
        for part in training:
            part.training = True
    found["logits"] = _content(logits)
    return found


def _content(tensor: torch.Tensor) -> str:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(flat.numpy().tobytes()).hexdigest()}"
