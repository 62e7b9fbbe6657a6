"""Passes: one forward of a model on token ids alone, and what its modules were seen to do in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from probekit.errors import ModelError, out_of_memory
from probekit.models.offload import Offloaded


def text_config(model: nn.Module) -> Any:
    """The config of the text decoder: the model's own, or the text part of a composite one."""
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no `config`; probekit reads models built by transformers.")
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def context_of(model: nn.Module) -> int | None:
    """The longest sequence a model was made for, or None if its config does not say."""
    length: int | None = getattr(text_config(model), "max_position_embeddings", None)
    if type(length) is not int or length < 1:
        return None
    for path, part in model.named_modules():
        padding = getattr(part, "padding_idx", None) if "position" in path else None
        if isinstance(part, nn.Embedding) and part.num_embeddings == length and padding is not None:
            return length - int(padding) - 1  # as roberta: positions are counted from behind the padding's
    return length


def neutral_token(model: nn.Module) -> int:
    """A token id that is not padding: some models derive positions or masks from where padding stands."""
    return 1 if padding_token(model) == 0 else 0


def padding_token(model: nn.Module) -> int | None:
    """The token id that the config calls padding, if it names one that there is."""
    config = text_config(model)
    token, count = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    there = type(token) is int and token >= 0 and (type(count) is not int or token < count)
    return token if there else None


def without_cache(model: nn.Module) -> dict[str, bool]:
    """The argument that keeps a forward from filling a cache, which some models keep on their own modules."""
    return {"use_cache": False} if takes(model, "use_cache") else {}


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward takes an argument of that name."""
    return _takes(type(model).forward, argument)


@cache
def _takes(method: Callable[..., Any], argument: str) -> bool:
    parameters = inspect.signature(method).parameters
    return argument in parameters or any(part.kind is part.VAR_KEYWORD for part in parameters.values())


@dataclass(frozen=True)
class Fired:
    """One module's run: its name, what it got first and what it returned first, where those are tensors."""

    name: str
    given: torch.Tensor | None
    returned: torch.Tensor | None

    @property
    def changed(self) -> bool:
        """Whether it returned a tensor, and not just what it got."""
        return self.returned is not None and not same(self.given, self.returned)


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether these are two equal tensors. On the meta device, where there are no values: the very same tensor."""
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one is other or (not one.is_meta and torch.equal(one, other))


class Reached(BaseException):
    """Raised by our own hook to end a forward pass: nothing past it is computed.

    Not an Exception, so that no `except Exception` on the way takes it for a failure.
    """


def trace(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    input_ids: torch.Tensor,
    until: nn.Module | None = None,
    source: nn.Module | None = None,
) -> list[Fired]:
    """Which of these modules ran in one forward over the token ids, in order. The forward ends where `until` begins.

    With a `source`, what it returns requires gradients, and with it all that depends on it.
    """
    fired: list[Fired] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            given = next(iter((*inputs, *keywords.values())), None)
            returned = output[0] if isinstance(output, tuple | list) and output else output
            # A copy: the model may go on to write into this very tensor.
            copies = {
                part: part if part.is_meta else part.clone() for part in (given, returned) if torch.is_tensor(part)
            }
            fired.append(
                Fired(name, *(copies.get(part) if torch.is_tensor(part) else None for part in (given, returned)))
            )

        return hook

    def end(_module: nn.Module, _inputs: Any) -> None:
        raise Reached

    def lead(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach().clone().requires_grad_().clone()  # the model may write into it, but not into a leaf

    sources = list(source) if isinstance(source, nn.ModuleList) else [source] if source is not None else []
    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        if until is not None:
            hooks.callback(until.register_forward_pre_hook(end).remove)
        for part in sources:
            hooks.callback(part.register_forward_hook(lead).remove)
        if sources:
            hooks.enter_context(frozen(model))
        hooks.enter_context(suppress(Reached))
        hooks.enter_context(Offloaded(model).passing(gradients=False))
        with evaluating(model), torch.set_grad_enabled(bool(sources)):
            model(input_ids=input_ids, **without_cache(model))
    return fired


@contextmanager
def switched(parts: Sequence[Any], flag: str, on: bool) -> Iterator[None]:
    """A flag of these, which is the other way in all of them, turned while open."""
    try:
        for part in parts:
            setattr(part, flag, on)
        yield
    finally:
        for part in parts:
            setattr(part, flag, not on)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires gradients while open, and each has its own flag afterwards.

    By module and name: the parameters of an offloaded module are other objects after each forward.
    """
    trainable = [
        (module, name)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    ]

    def require(required: bool) -> None:
        for module, name in trainable:
            parameter = module._parameters[name]
            if parameter is not None:
                parameter.requires_grad = required

    try:
        require(False)
        yield
    finally:
        require(True)


@contextmanager
def on_ids_alone(model: nn.Module) -> Iterator[None]:
    """Raise ModelError for what the model raises while open: it does not run on token ids alone."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{type(model).__name__} does not run on token ids alone "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}); probekit reads causal language models."
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while open, and each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
