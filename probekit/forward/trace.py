"""Whether a model is what it was before somebody had it, and putting it back as far as that is possible.

Hooks, forwards and other functions, classes, modules, parameters, buffers, their storage, flags and gradients are named
where they are others, and put back. So are, without a word, what models change themselves: attributes of modules,
settings, and buffers that no checkpoint holds. What is written into a weight in place is noticed and cannot be put
back.

Weights that an offload keeps out of memory (on the meta device) are not compared, and of tensors without one plain
storage (sparse, uninitialised) only which they are.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn.modules import module as everywhere

from probekit.forward.functions import Functions

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
GLOBAL_HOOKS = tuple(name for name in vars(everywhere) if name.startswith("_global_") and name.endswith("_hooks"))
GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
MEMBERS = ("_modules", "_parameters", "_buffers")

TOLD = 3  # so many functions are named
# Weights of so many bytes are read whole. Of more, a few figures of each: pages of a checkpoint that is mapped into
# memory, and that no pass has needed, would be read from disk for it.
READ_WHOLE = 2**30
PIECE = 2**24  # bytes that are read at once, and copied where they are not contiguous or not in the CPU's memory
PLACES, FIGURES = 16, 64  # so many figures at each of so many places
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, are spread evenly and meet no rows or columns of their own
COPIED = 2**24  # bytes of a buffer that is copied


class Trace:
    """A model as it is now, to compare it with what it is later.

    It holds references to what is there now, a hash of each weight, and copies of nothing but buffers of up to 16 MiB
    that no checkpoint holds.

    Attributes:
        sums: A hash of each parameter, persistent buffer and figure of a quantisation, by its name: the same for the
            same weights of another model.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._modules = {name: _Module(part) for name, part in modules.items()}
        self._everywhere = hooks_everywhere()
        self._functions = Functions(modules.values())
        self._weights = {name: _Weight(weight) for name, weight in model.named_parameters()}
        self._passing = []
        for owner, part in modules.items():
            saved = _saved_buffers(part)
            self._weights |= {
                _inside(owner, name): _Weight(buffer) for name, buffer in saved.items() if buffer is not None
            }
            others = [buffer for name, buffer in part._buffers.items() if name not in saved and buffer is not None]
            self._passing += [_Weight(buffer, copied=True) for buffer in others]
        self._settings = [_Settings(config) for config in _configs(modules.values())]
        self._whole = sum(weight.bytes for weight in self._weights.values()) <= READ_WHOLE
        self.sums = self._read()

    def _read(self) -> dict[str, int]:
        sums = {name: _sum(weight.data, self._whole) for name, weight in self._weights.items()}
        for owner, module in self._modules.items():
            for name, tensor in _quantisation(module.part):
                sums[_inside(owner, name)] = _sum(tensor, self._whole)
        return {name: found for name, found in sums.items() if found is not None}

    def put_back(self) -> tuple[list[str], bool]:
        """What is not as it was, each thing in words, after putting it back; and whether that was possible for all.

        It was not where a weight has been written into: the model has to be loaded again.
        """
        kinds = put_back_everywhere(self._everywhere)
        everybody = [f"hooks of every module ({kind.removeprefix('_global_')})" for kind in kinds]
        functions = self._functions.put_back()
        everybody += functions[:TOLD] + ([f"{len(functions) - TOLD} other functions"] if functions[TOLD:] else [])
        found: dict[str, list[str]] = {}
        for parts in (self._modules, self._weights):
            for name, part in parts.items():
                for words in part.put_back():
                    found.setdefault(words, []).append(name)
        for buffer in self._passing:
            list(buffer.put_back())
        for settings in self._settings:
            settings.put_back()
        now = self._read()
        written = [name for name in {**self.sums, **now} if self.sums.get(name) != now.get(name)]
        if written:
            found["other figures in"] = written
        return [*everybody, *(f"{words} {_few(names)}" for words, names in found.items())], not written


def hooks_everywhere() -> dict[str, dict[Any, Any]]:
    """The hooks of every module, by their kind, as they are now."""
    return {name: dict(getattr(everywhere, name)) for name in GLOBAL_HOOKS}


def put_back_everywhere(before: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """The kinds of which there were others than before, after putting them back."""
    return [kind for kind, hooks in before.items() if _restored(getattr(everywhere, kind), hooks)]


class _Module:
    """A module: its class, its attributes, and its hooks and members."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self._type = type(part)
        self._attributes = dict(vars(part))
        self._contents = {kind: dict(getattr(part, kind)) for kind in (*HOOKS, *MEMBERS)}
        self._members = {kind.strip("_"): self._contents[kind] for kind in MEMBERS} | {"buffers": _saved_buffers(part)}
        self._not_saved = set(part._non_persistent_buffers_set)

    def put_back(self) -> Iterator[str]:
        """What was not as it was, in words that the name of the module completes."""
        part, was = self.part, self._attributes
        if type(part) is not self._type:
            part.__class__ = self._type
            yield "another class of"
        for kind in HOOKS:
            if not _same(getattr(part, kind), self._contents[kind]):
                yield f"{kind.strip('_').replace('_', ' ')} of"
        members: dict[str, Mapping[str, Any]]
        members = {"modules": part._modules, "parameters": part._parameters, "buffers": _saved_buffers(part)}
        for kind, was_there in self._members.items():
            if not _same(members[kind], was_there):
                yield f"other {kind} in"
        if vars(part).get("forward") is not was.get("forward"):
            yield "another forward of"
        if part.training != was["training"]:
            yield "the training mode of"
        _restored(vars(part), was)
        for kind, contents in self._contents.items():
            _restored(was[kind], contents)
        part._non_persistent_buffers_set.clear()
        part._non_persistent_buffers_set.update(self._not_saved)


class _Weight:
    """A parameter or buffer: the tensor itself, its storage, its flags and its gradient; and a copy of it if asked."""

    def __init__(self, tensor: torch.Tensor, copied: bool = False) -> None:
        self._tensor = tensor
        self.data = tensor.data
        self._is_plain = _place(tensor) is not None
        self._requires_grad = tensor.requires_grad
        self._is_leaf = tensor.is_leaf
        self._gradient = tensor.grad if tensor.is_leaf else None
        self._hooks = {kind: dict(getattr(tensor, kind) or {}) for kind in GRADIENT_HOOKS}
        in_memory = self._is_plain and not tensor.is_meta
        self.bytes = tensor.numel() * tensor.element_size() if in_memory else 0
        self._copy = tensor.detach().clone() if copied and 0 < self.bytes <= COPIED else None

    def put_back(self) -> Iterator[str]:
        """What was not as it was, in words that the name of the weight completes."""
        tensor = self._tensor
        if self._is_plain and _place(tensor) != _place(self.data):
            tensor.data = self.data
            yield "other storage of"
        for kind, was in self._hooks.items():
            now = getattr(tensor, kind)
            if not _same(now or {}, was):
                setattr(tensor, kind, OrderedDict(was)) if now is None else _restored(now, was)
                yield "hooks on gradients of"
        if self._is_leaf and tensor.requires_grad != self._requires_grad:
            if not tensor.is_leaf:
                tensor.detach_()
            tensor.requires_grad_(self._requires_grad)
            yield "requires_grad of"
        if self._is_leaf and tensor.grad is not self._gradient:
            tensor.grad = self._gradient
            yield "gradients of"
        if self._copy is not None and _sum(self.data) != _sum(self._copy):
            with torch.inference_mode():  # where buffers that were made in that mode can be written as well
                tensor.copy_(self._copy)


class _Settings:
    """The attributes of a config, and what is in those that are lists, dicts or sets."""

    def __init__(self, config: Any) -> None:
        self._now = vars(config)
        self._was = dict(self._now)
        self._contents = {key: value.copy() for key, value in self._was.items() if type(value) in (list, dict, set)}

    def put_back(self) -> None:
        _restored(self._now, self._was)
        for key, contents in self._contents.items():
            self._was[key].clear()
            (self._was[key].extend if isinstance(contents, list) else self._was[key].update)(contents)


def _configs(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """The configs of modules, and those within them, such as that of the text model."""
    waiting = [vars(part).get(name) for part in modules for name in ("config", "generation_config")]
    seen = set()
    while waiting:
        config = waiting.pop()
        if hasattr(type(config), "to_dict") and hasattr(config, "__dict__") and id(config) not in seen:
            seen.add(id(config))
            yield config
            waiting += vars(config).values()


def _saved_buffers(part: nn.Module) -> dict[str, torch.Tensor | None]:
    """The buffers that a checkpoint holds: others a forward pass may make anew, such as a rotary embedding's."""
    return {name: buffer for name, buffer in part._buffers.items() if name not in part._non_persistent_buffers_set}


def _quantisation(part: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What bitsandbytes computes a layer's weights from, beside the weight itself.

    Of eight bits, it is the weight's own until the first forward, and the layer's from then on.
    """
    weight, state = part._parameters.get("weight"), vars(part).get("state")
    for name in ("SCB", "CB"):
        found = getattr(state, name, None) if getattr(weight, name, None) is None else getattr(weight, name)
        if isinstance(found, torch.Tensor) and weight is not None and _place(found) != _place(weight):
            yield name, found
    states = [getattr(weight, "quant_state", None)]
    states.append(getattr(states[0], "state2", None))
    for name, state in zip(("", "state2."), states, strict=True):
        for key, value in vars(state).items() if state is not None else ():
            if isinstance(value, torch.Tensor):
                yield f"{name}{key}", value


def _place(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Where a tensor lies and how; None where it has no one storage of its own."""
    try:
        return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    except (RuntimeError, ValueError):  # sparse, nested, or uninitialised
        return None


def _sum(tensor: torch.Tensor, whole: bool = True) -> int | None:
    """A hash of the bits of a tensor, or of a few of its figures; None for one that is not in memory."""
    if _place(tensor) is None or tensor.is_meta:
        return None
    found = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    size = tensor.numel()
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    if size and (last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
        return None  # somebody has freed it
    if size > PLACES * FIGURES and not whole:
        starts = (torch.arange(PLACES, dtype=torch.float64) * GOLDEN % 1 * (size - FIGURES + 1)).long()
        chosen = (starts[:, None] + torch.arange(FIGURES)).flatten().to(tensor.device)
        tensor = tensor[torch.unravel_index(chosen, tensor.shape)]
    rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    pieces = rows.split(max(1, len(rows) * PIECE // (rows.numel() * rows.element_size()))) if size else ()
    for piece in pieces:
        flat = piece.cpu().contiguous().reshape(-1).view(torch.uint8)
        figures: Any = numpy.from_dlpack(flat)  # .numpy() would forbid the storage to be resized
        found = zlib.crc32(figures, found)
    return found


def _same(now: Mapping[Any, Any], was: Mapping[Any, Any]) -> bool:
    """Whether two dicts hold the same objects in the same order."""
    return list(now) == list(was) and all(now[key] is was[key] or _nowhere(now[key], was[key]) for key in was)


def _restored(now: dict[Any, Any], was: Mapping[Any, Any]) -> bool:
    """Whether a dict had to be put back."""
    same = _same(now, was)
    if not same:
        now.clear()
        now.update(was)
    return not same


def _nowhere(now: Any, was: Any) -> bool:
    """Whether both are weights without storage: an offload makes them anew after each pass."""
    return isinstance(now, torch.Tensor) and isinstance(was, torch.Tensor) and now.is_meta and was.is_meta


def _inside(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


def _few(names: list[str]) -> str:
    """Some names in words: the first, and how many more."""
    first = f"'{names[0]}'" if names[0] else "the model itself"
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
