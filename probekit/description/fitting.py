"""How many independent rows fit into the memory that is free, asked before the first of them is computed.

On the CPU this is no matter of speed: where a process takes more than there is, the system ends it, and no smaller
batch can be tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import nn

from probekit.description.memory import free, saved_by, weights_on
from probekit.errors import out_of_memory
from probekit.models.devices import as_device
from probekit.subject import Subject

# So many times the estimate has to be free. What else is on the machine changes, and allocators keep what was freed: a
# descent of GPT-2 by small tensors came to twice what its tensors take on the CPU (glibc), by large ones to 1.3 times.
MARGIN = {"cpu": 2.0}
MARGIN_ELSEWHERE = 1.4
# The backward pass of a block takes about so many times its largest tensor, on top of what the forward pass kept.
BACKWARD = 6
# A gradient keeps about so many values for each that a matrix takes or gives. Measured: 1.4 for GPT-2, 2 for Llama.
ROUGHLY = 4
# By the rough figure alone, nothing is measured where so many times of it is free.
BY_FAR = 16


def rows_that_fit(
    subject: Subject,
    site: str,
    tokens: int,
    count: int,
    row: Callable[[], object] | None = None,
    beside: int = 0,
    after: int = 0,
) -> int:
    """How many of `count` rows of so many tokens can be computed at once: all, or the most of `count / 2`, `count / 4`,
    … (rounded up) that fit, at least 1.

    `row` computes one row up to the site with its graph, and does not go back through it; what that keeps for its
    gradient is measured, unless the shapes of the weights say that all rows fit by far. Without `row` no gradients are
    computed, and the shapes decide.
    `beside` are bytes that a row holds on the subject's device beside that, `after` those that stay on the CPU when it
    is done. Free is what `--max-memory` leaves of a device beside the weights, if that is less than what there is.
    """
    left = {device: _left(subject, device) for device in _devices(subject)}
    entrance = _normalised(subject.device)
    if torch.device("cpu") in left:
        left[torch.device("cpu")] -= count * after
    needed = Counter({device: _roughly(subject, site, tokens, row is not None) for device in left})
    needed[entrance] += beside
    if row is not None and any(BY_FAR * count * needed[device] > left[device] for device in left):
        try:
            needed = Counter({entrance: beside}) + _measured(saved_by(subject.model, row))
        except Exception as error:
            if out_of_memory(error):
                return 1
            raise
    rows = count
    while rows > 1 and any(rows * _with_margin(device, need) > left.get(device, 0) for device, need in needed.items()):
        rows = -(-rows // 2)
    return rows


def _devices(subject: Subject) -> set[torch.device]:
    """Where the model computes."""
    places = {parameter.device for parameter in subject.model.parameters() if not parameter.is_meta}
    return {_normalised(device) for device in (subject.device, *places)}


def _normalised(device: torch.device) -> torch.device:
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else torch.device(device.type)


def _left(subject: Subject, device: torch.device) -> int:
    """Bytes that rows may take on a device."""
    limits = {_normalised(as_device(key)): size for key, size in subject.max_memory.items() if key != "disk"}
    there = free(device)
    return min(there, limits[device] - weights_on(subject, device)) if device in limits else there


def _measured(kept: Iterable[torch.UntypedStorage]) -> Counter[torch.device]:
    """What a row takes on each device, in the forward and the backward pass."""
    sizes: dict[torch.device, list[int]] = {}
    for storage in kept:
        sizes.setdefault(_normalised(storage.device), []).append(storage.nbytes())
    return Counter({device: sum(each) + BACKWARD * max(each) for device, each in sizes.items()})


def _with_margin(device: torch.device, need: int) -> float:
    return MARGIN.get(device.type, MARGIN_ELSEWHERE) * need


def _roughly(subject: Subject, site: str, tokens: int, gradient: bool) -> int:
    """What a row takes, from the shapes of the weights up to the site: of all of them with gradients, else of the part
    that takes most.
    """
    blocks = subject.anatomy.blocks
    name = subject.expand_sites(site)[0]
    number = name.removeprefix("block.")
    last = int(number) + 1 if number.isdecimal() and name.startswith("block.") else len(blocks)
    parts = [_values(block, tokens, subject.width) for block in blocks[:last]]
    if subject.anatomy.unembedding is not None and name == "logits":
        parts.append(_values(subject.anatomy.unembedding, tokens, subject.width))
    of_one = max(parts, default=0)
    values = (sum(parts) if gradient else 0) + of_one
    return ROUGHLY * tokens * values * max(4, next(subject.model.parameters()).element_size())


def _values(part: nn.Module, tokens: int, width: int) -> int:
    """How many values the matrices of a part take and give for a token, and its attention at most."""
    matrices = 0
    for module in part.modules():
        if isinstance(module, nn.Linear):  # by its own word: quantised weights have other shapes
            matrices += module.in_features + module.out_features
        else:
            shapes = [each.shape for each in module.parameters(recurse=False) if each.dim() > 1]
            matrices += sum(map(sum, shapes))
    return matrices + tokens * max(1, width // 64)
