"""Memory of a run, in bytes: what a gradient keeps, what weights take, and how much is free."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import get_max_memory
from accelerate.utils.memory import clear_device_cache
from torch import nn

from probekit.description.control_groups import left_by_groups
from probekit.models.mapping import is_mapped, mapped_files
from probekit.subject import Subject

# What a gradient keeps is measured at these lengths, and from them follows for any other.
LENGTHS = (16, 32)


@dataclass(frozen=True)
class Kept:
    """What one row's gradient keeps from the forward to the backward pass: `a T + b T²` for T tokens."""

    linear: float
    quadratic: float = 0.0

    def __call__(self, tokens: int) -> int:
        return round(self.linear * tokens + self.quadratic * tokens**2)


def kept_for_gradient(subject: Subject, site: str, input_ids: torch.Tensor) -> Kept:
    """What the gradient of a layer map keeps for one row, `input_ids` `[1, T]`, measured on its first tokens.

    All that autograd saves in a forward pass but weights and buffers; what a backward pass needs for a moment on top
    of that, about the size of one block's share, is left out. 0 where that is not seen: where weights are offloaded.
    """
    length = input_ids.shape[1]
    if length <= LENGTHS[-1] or subject.anatomy.sequence is not None:
        return Kept(_saved(subject, site, input_ids) / length)
    short, long = (_saved(subject, site, input_ids[:, :tokens]) / tokens for tokens in LENGTHS)
    quadratic = max(0.0, (long - short) / (LENGTHS[1] - LENGTHS[0]))
    return Kept(long - quadratic * LENGTHS[1], quadratic)


def _saved(subject: Subject, site: str, input_ids: torch.Tensor) -> int:
    layer_map = subject.layer_map(site, input_ids=input_ids if subject.reads_ids(site) else None)
    embeddings = subject.embed(input_ids)
    embeddings = (embeddings if embeddings.dtype == torch.float64 else embeddings.float()).requires_grad_()
    return sum(storage.nbytes() for storage in saved_by(subject.model, lambda: layer_map(embeddings)))


def saved_by(model: nn.Module, compute: Callable[[], object]) -> Iterable[torch.UntypedStorage]:
    """What autograd saves while something is computed with gradients, each storage once, but for the model's own.

    Hold them no longer than they are counted: they take the memory that they take.
    """
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta
    }
    # The storages themselves: while they are held, no other is where they are.
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        """The tensor without its graph: kept as it is, it would hold the graph that holds it, which no garbage
        collector sees.
        """
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        compute()
    return found.values()


@dataclass(frozen=True)
class Held:
    """Where the bytes of a model's weights are."""

    in_memory: int
    mapped: int
    """In a file that is mapped into memory: the system reads what is used, and may forget it again."""
    offloaded: int


def weights(subject: Subject) -> Held:
    """Where the weights are: in memory, in a mapped file, or offloaded."""
    ranges = mapped_files()
    sizes = {"in_memory": 0, "mapped": 0, "offloaded": 0}
    for parameter in {id(each): each for each in subject.model.parameters()}.values():
        where = "mapped" if is_mapped(parameter, ranges) else "offloaded" if parameter.is_meta else "in_memory"
        sizes[where] += parameter.nbytes
    return Held(**sizes)


def weights_on(subject: Subject, device: torch.device) -> int:
    """Bytes of the weights that are in the memory of one device."""
    ranges = mapped_files()
    there = {id(each): each for each in subject.model.parameters() if each.device == device}.values()
    return sum(parameter.nbytes for parameter in there if not is_mapped(parameter, ranges))


def give_back() -> None:
    """Give back what is no longer used but kept for later: garbage, the devices' caches and the heap's free parts."""
    clear_device_cache(garbage_collection=True)
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def free(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU what is available, within the limits of this process and of
    the groups that it is in.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min([_available(), *_left_by_limits(), *left_by_groups()])


def _available() -> int:
    """What the system could give without swapping. Read here: accelerate would start every CUDA device for it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # another system
        return int(get_max_memory()["cpu"])


def _left_by_limits() -> list[int]:
    """What the limits of this process (`ulimit -v`, `ulimit -d`) leave of its address space and of its data."""
    try:
        import resource

        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()
    except (ImportError, OSError):  # another system
        return []
    taken = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}
    limits = {kind: resource.getrlimit(kind)[0] for kind in taken}
    return [
        max(0, limits[kind] - int(count) * resource.getpagesize())
        for kind, count in taken.items()
        if limits[kind] != resource.RLIM_INFINITY
    ]
