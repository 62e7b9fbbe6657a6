"""A fresh model of the subject's architecture: random weights from its config, the head untied from the embedding."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probekit import UsageError
from probekit_plugins.training import is_quantised

if TYPE_CHECKING:
    from probekit import Subject


def check(subject: Subject) -> None:
    """Raise UsageError with one sentence if there is no head to freeze, or no fresh model to be had."""
    if subject.anatomy.unembedding is None or subject.anatomy.unembedding_path is None:
        raise UsageError(f"{type(subject.model).__name__} has no head that could be frozen; give a causal LM.")
    if not subject.has_logits:
        raise UsageError(
            f"{type(subject.model).__name__} has several heads, one for each of its codebooks, and this analysis "
            "freezes the one head of a model that predicts tokens; give a causal LM of text."
        )
    if is_quantised(subject):
        raise UsageError(
            "This analysis trains fresh models of the same architecture, which a quantised model does not stand for; "
            "leave out --quantization."
        )


def fresh(subject: Subject, seed: int) -> nn.Module:
    """The subject's class with random weights, as it draws them itself; in eval mode, in fp32 at least.

    The same seed gives the same weights. The subject and the caller's random state stay as they are. Raises
    UsageError with one sentence if the class makes no such model of its config.
    """
    kind: Any = type(subject.model)
    config = copy.deepcopy(getattr(subject.model, "config", None))
    for part in {id(part): part for part in (config, _text_part(config))}.values():
        if part is not None:
            part.tie_word_embeddings = False
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # not torch's own: that would seed every device
            model: nn.Module = kind(config)
    except Exception as error:  # a class may do what it likes with a config
        problem = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{kind.__name__} cannot be made anew from its config ({type(error).__name__}: {problem}), and this "
            "analysis trains fresh models."
        ) from error
    shapes, expected = _shapes(model), _shapes(subject.model)
    if any(shapes.get(name) != shape for name, shape in expected.items()):
        raise UsageError(
            f"{kind.__name__} makes another model of its config than this one, and this analysis trains fresh models "
            "of the same architecture."
        )
    _untie(model, str(subject.anatomy.unembedding_path))
    widest = next(subject.model.parameters()).dtype
    return model.to(subject.device, torch.float64 if widest == torch.float64 else torch.float32).eval()


def _text_part(config: Any) -> Any:
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _untie(model: nn.Module, path: str) -> None:
    """Weights of the head that the class shares with another part whatever its config says become its own."""
    head = model.get_submodule(path)
    own = {id(parameter) for parameter in head.parameters()}
    elsewhere = [
        part for part in model.modules() if part is not head and id(part) not in {id(p) for p in head.modules()}
    ]
    shared = own & {id(parameter) for part in elsewhere for parameter in part.parameters(recurse=False)}
    for part in head.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if id(parameter) in shared:
                setattr(part, name, nn.Parameter(parameter.detach().clone()))
