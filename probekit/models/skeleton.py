"""Skeletons: a model built from its config alone, on torch's meta device, where tensors have shapes and no values.

Nothing of its weights is read or allocated: a config is a few kilobytes, and so is the skeleton of any model. What is a
question of structure and shapes (where the parts are, what they return, how large they are, through what gradients
flow) it answers as the loaded model would.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from probekit.models.demo import DEMO_FOLDER
from probekit.models.depth import cut
from probekit.models.failures import in_sentences, quiet_libraries
from probekit.models.loading import LoadedModel
from probekit.models.placement import check_devices
from probekit.models.sources import commit, find_source, load_tokenizer, on_meta
from probekit.models.spec import ModelSpec
from probekit.models.trust import reading_model

# The largest tensor that is computed for real beside a skeleton; larger ones are left without values.
VALUES = 1 << 20

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def skeleton(spec: ModelSpec) -> LoadedModel:
    """The model that the spec names, without its weights, with its tokenizer and what is known of where it comes from.

    It is in eval mode and frozen, and in the precision that it would be loaded in. Raises ModelError with one sentence
    if it cannot be built, UsageError if the spec contradicts itself.
    """
    check_devices(spec)
    source = find_source(spec.name)
    with quiet_libraries(), in_sentences(spec), reading_model(source, spec) as given:
        config = cut(given.config, spec)
        tokenizer, missing_tokenizer = load_tokenizer(given)
        checkpoint, said_by = _checkpoint_dtype(config, source, spec)
        dtype = checkpoint if spec.dtype == "auto" else getattr(torch, spec.dtype)
        # Another way to compute the same, with shapes that do not depend on where tokens are routed.
        config._experts_implementation = "batched_mm"
        model = on_meta(config, spec, dtype)
    folder = Path(source)
    place = "demo" if folder == DEMO_FOLDER else "folder" if folder.is_dir() else "hub"
    facts: dict[str, Any] = {"source": place}
    if place == "folder":
        facts["has_weights"] = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    if place == "hub":
        facts["revision"] = commit(source, spec.revision)
    facts |= {"dtype": _name(dtype), "checkpoint_dtype": _name(checkpoint), "checkpoint_dtype_said_by": said_by}
    if missing_tokenizer:
        facts["tokenizer"] = missing_tokenizer
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, facts)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checkpoint_dtype(config: Any, source: str, spec: ModelSpec) -> tuple[torch.dtype, str]:
    """The precision of the checkpoint, and what says so: its config, its first weights, or neither."""
    for part in (config, config.get_text_config(decoder=True)):
        said = getattr(part, "dtype", None)
        said = getattr(torch, said, None) if isinstance(said, str) else said
        if isinstance(said, torch.dtype):
            return said, "config"
    folder = Path(source)
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors"))
    else:
        cached = try_to_load_from_cache(source, "model.safetensors", revision=spec.revision)
        files = [Path(cached)] if isinstance(cached, str) else []
    for file in files[:1]:
        try:
            with safe_open(file, framework="pt") as weights:  # reads the header only
                kinds = (weights.get_slice(key).get_dtype() for key in weights.keys())  # noqa: SIM118
                for kind in kinds:
                    if kind in _FLOATS:
                        return _FLOATS[kind], "weights"
        except (SafetensorError, OSError):  # a damaged file: a matter of loading
            break
    return torch.float32, "nothing"


def is_skeleton(model: nn.Module) -> bool:
    """Whether a model has no weights, so that a forward pass gives shapes and no values."""
    return any(parameter.is_meta for parameter in model.parameters())


def forwards_of(model: nn.Module) -> AbstractContextManager[Any]:
    """While open, a skeleton can run; for a model with weights nothing is different."""
    return ShapesAlone() if is_skeleton(model) else nullcontext()


def needs_values(error: BaseException | None) -> bool:
    """Whether a skeleton's forward failed only because it has no values."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, NotImplementedError | RuntimeError) and re.search(
            "(?<![a-z])meta(?![a-z])", str(error), re.I
        ):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


class ShapesAlone(TorchFunctionMode):
    """While open, forwards of a skeleton compute for real what does not depend on weights, and shapes of the rest.

    Positions and masks follow from the ids, the config and the shapes; a model may look at their values to choose its
    way, and then chooses the way that it would choose with its weights. They are kept on the CPU, whatever device a
    model asks for. What meets a tensor without values has none itself.
    """

    def __init__(self) -> None:
        super().__init__()
        # Tensors that had values until others without were written into them, by where their memory is.
        self._lost: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__":  # an attribute, such as the shape
            return function(*args, **kwargs)
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        if name in ("to", "cpu", "cuda") and tensors:
            return _cast(args, kwargs)
        if all(self._has_values(tensor) for tensor in tensors):
            return _with_values(function, name, args, kwargs)
        if (name == "__setitem__" or re.search(r"[^_]_$", name)) and not args[0].is_meta:
            self._lost[args[0].untyped_storage().data_ptr()] = args[0]
            return args[0]
        if name == "__getitem__" and _is_mask(args[1]) and self._has_values(args[1]):
            args = (args[0], args[1].nonzero()[:, 0])
        args, kwargs = tree_map(_without_values, (args, kwargs))
        if name == "equal":  # of what has no values, the shapes
            return args[0].shape == args[1].shape
        return function(*args, **kwargs)

    def _has_values(self, tensor: torch.Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage().data_ptr() not in self._lost


def _without_values(part: Any) -> Any:
    return torch.empty_like(part, device="meta") if isinstance(part, torch.Tensor) and not part.is_meta else part


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.dim() == 1


def _with_values(function: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What needs no weights, on the CPU, unless it is large or random."""
    if kwargs.get("device") is None or torch.device(kwargs["device"]).type != "meta":
        return function(*args, **kwargs)
    shape = function(*args, **kwargs)
    if name.startswith("rand") or not isinstance(shape, torch.Tensor) or shape.numel() > VALUES:
        return shape
    return function(*args, **{**kwargs, "device": "cpu"})


def _cast(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """A change of type without the change of device."""
    dtype = kwargs.get("dtype")
    for part in (*args[1:], kwargs.get("other")):
        if isinstance(part, torch.Tensor):
            dtype = part.dtype
        elif isinstance(part, torch.dtype):
            dtype = part
    tensor: torch.Tensor = args[0]
    return tensor if dtype is None else tensor.to(dtype)
