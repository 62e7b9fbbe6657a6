"""A pretend accelerator for machines without one: `twin:0` and `twin:1`, whose tensors hold their values on the CPU.

What runs on it is what runs on the CPU, so that results have the same bits; but as on a real device, an operator
refuses tensors of two devices, a CPU scalar beside it apart, and random numbers from another device's generator. Torch
has one place for a device of others' making (PrivateUse1) and keeps it for good: call `register` in a process of its
own.

It costs some 20 µs an operator. What it lacks: streams, generators of its own, storages, and operators that change a
tensor's shape in place.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend
from torch.utils import backend_registration

NAME = "twin"
COUNT = 2

aten = torch.ops.aten
# What moves values from one device to another.
MOVES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
# What takes indices from the CPU as well.
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# What takes a scalar from the CPU though it does not work element by element.
SCALARS = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, *INDEXING}
# What makes a tensor from nothing, not counting what fills one that these have made.
FACTORIES = [
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.eye.default,
    aten.eye.m,
    aten.linspace.default,
    aten.randperm.default,
    aten.randperm.generator,
    aten.tril_indices.default,
    aten.triu_indices.default,
]
# What the CPU computes by itself, and torch, for a device that it does not know, from other operators.
COMPOSED = [aten.silu_backward.default, aten.mish_backward.default]

_libraries: list[torch.library.Library] = []


class Twin(torch.Tensor):
    """A tensor on a pretend device: `host` is the same tensor on the CPU."""

    host: torch.Tensor

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> torch.Tensor:  # type: ignore[misc]
        """As `nn.Parameter(data, requires_grad)`, for what makes a parameter of the type of another."""
        return torch.nn.Parameter(data, requires_grad)

    # What a plain tensor does without asking Python.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["host"], self.device

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], device: torch.device, size: Any, stride: Any) -> Twin:
        return on(parts["host"], device)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def tolist(self) -> Any:
        return self.host.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.host!r} on {self.device}"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied


def on(values: torch.Tensor, device: torch.device) -> Twin:
    """The tensor that holds these values on a pretend device."""
    index = device.index or 0
    if not 0 <= index < COUNT:
        raise RuntimeError(f"There is no {device}; there are {COUNT} devices '{NAME}'.")
    made: Twin = torch.Tensor._make_wrapper_subclass(
        Twin,
        values.size(),
        strides=values.stride(),
        storage_offset=values.storage_offset(),
        dtype=values.dtype,
        layout=values.layout,
        device=torch.device(NAME, index),
    )
    made.host = values
    return made


def compute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The operator on the values; its result is where its arguments are, or where `device` says.

    Raises RuntimeError if arguments are on different devices.
    """
    kind = _kind(func)
    device = _checked(kind, args, kwargs)
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu") if device.type == NAME else device}
    found = func(*map(_values, args), **{name: _values(part) for name, part in kwargs.items()})
    written = [args[place] if place < len(args) else kwargs.get(name) for place, name in kind.written]
    for tensor in _tensors(written):
        if isinstance(tensor, Twin) and tensor.shape != tensor.host.shape:
            raise NotImplementedError(f"{func} changes the shape of a tensor in place.")
    if kind.returns_written:
        return written[0] if len(written) == 1 else tuple(written)
    return found if device is None or device.type != NAME else _moved(found, device)


@dataclass(frozen=True)
class _Kind:
    """What an operator's schema says of its arguments."""

    name: str
    moves: bool
    takes_indices: bool
    takes_scalars: bool
    takes_scalars_in_lists: bool
    written: tuple[tuple[int, str], ...]  # the arguments that it writes to
    returns_written: bool


@cache
def _kind(func: Any) -> _Kind:
    def writes(part: Any) -> bool:
        return part.alias_info is not None and bool(part.alias_info.is_write)

    schema, lists = func._schema, func.name().startswith("aten::_foreach")
    return _Kind(
        func.name(),
        func in MOVES,
        func in INDEXING,
        torch.Tag.pointwise in func.tags or func in SCALARS or lists,
        lists,
        tuple((place, part.name) for place, part in enumerate(schema.arguments) if writes(part)),
        bool(schema.returns) and all(map(writes, schema.returns)),
    )


def _values(part: Any) -> Any:
    """An argument on the CPU."""
    if isinstance(part, Twin):
        return part.host
    return [_values(each) for each in part] if isinstance(part, list | tuple) else part


def _moved(part: Any, device: torch.device) -> Any:
    """A result on a pretend device."""
    if isinstance(part, torch.Tensor):
        return on(part, device)
    return type(part)(_moved(each, device) for each in part) if isinstance(part, list | tuple) else part


def _tensors(parts: Iterable[Any]) -> Iterator[torch.Tensor]:
    for part in parts:
        if isinstance(part, torch.Tensor):
            yield part
        elif isinstance(part, list | tuple):
            yield from _tensors(part)


def _checked(kind: _Kind, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.device | None:
    """The one device of the arguments; of the first, where the operator moves values to it."""
    if kind.moves:
        return args[0].device if isinstance(args[0], Twin) else None
    places: set[torch.device] = set()
    for place, part in enumerate((*args, *kwargs.values())):
        if isinstance(part, torch.Tensor):
            if part.device.type != "cpu" or part.dim() > 0 or not kind.takes_scalars:
                places.add(part.device)
        elif isinstance(part, list | tuple):
            for tensor in _tensors(part):
                free = (kind.takes_indices and place == 1) or (kind.takes_scalars_in_lists and tensor.dim() == 0)
                if tensor.device.type != "cpu" or not free:
                    places.add(tensor.device)
        elif isinstance(part, torch.Generator):
            on_cpu = torch.device(kwargs.get("device") or args[0].device).type == "cpu"
            if not on_cpu:
                raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{part.device.type}'")
    if len(places) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{', '.join(sorted(map(str, places)))}! (when checking arguments of {kind.name})"
        )
    return next(iter(places), None)


def _made(func: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        return compute(func, args, kwargs)

    return kernel


def _copied(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What `torch.tensor(…, device="twin")` calls behind Python's back."""
    _values(target).copy_(_values(source))
    return target


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention by the kernel that the CPU would take."""
    with torch.no_grad():
        parts = [_values(part).detach().requires_grad_(part.requires_grad) for part in (query, key, value)]
        mask = None if attn_mask is None else _values(attn_mask).detach().requires_grad_(attn_mask.requires_grad)
    choose: Any = torch._fused_sdp_choice
    choice = choose(*parts, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = hidden.masked_fill(attn_mask.logical_not(), -torch.inf)
    if choice == SDPBackend.FLASH_ATTENTION.value:
        found: torch.Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
        return found
    return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


class _Module(types.ModuleType):
    """`torch.twin`: what torch asks the module of a device for."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return COUNT

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def empty_cache(self) -> None:
        pass


def is_possible() -> bool:
    """Whether this torch takes devices that are made in Python."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def register() -> None:
    """Give torch the devices `twin:0` and `twin:1`, for the rest of the process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module(NAME))
    library = torch.library.Library("aten", "IMPL")
    for func in FACTORIES + COMPOSED:
        library.impl(func, _made(func), "PrivateUse1")
    library.impl("_copy_from", _copied, "PrivateUse1")
    library.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    _libraries.append(library)
    # Torch counts one device of others' making only, and would have no thread for the gradients of the second.
    torch.autograd.set_multithreading_enabled(False)
