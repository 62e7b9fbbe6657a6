"""What torch's profiler recorded: operators by their own time, and the parts of a step and modules they belong to.

An operator's own time is its duration less that of the operators inside it. It is forward where a module's call is
around it, backward where autograd evaluates a node, which belongs to the module of the forward operator with the same
sequence number; an update inside `Optimizer.step`. On CUDA an operator's time is that of launching it, and kernels are
listed by themselves.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FORWARD, BACKWARD, UPDATE, ELSE = "forward", "backward", "update", "else"
# So many operators, kernels and modules are told.
MOST_TOLD = 12
MOST_MODULES = 60

_KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "mv", "addmv", "dot", "einsum"),
    "attention": ("attention", "flash"),
    "copies": ("copy_", "clone", "contiguous", "cat", "fill_", "zero_", "empty", "index_select", "gather"),
    "views": ("view", "reshape", "as_strided", "transpose", "expand", "slice", "select", "detach", "permute"),
}


@dataclass(frozen=True)
class _Place:
    """Where an event is: the module's path, and whether autograd evaluates it."""

    module: str | None = None
    backward: bool = False
    inside_module: bool = False


def kind_of(operator: str) -> str:
    """What an operator does, in a word or two."""
    name = operator.removeprefix("aten::").lstrip("_")
    if any(part in name for part in _KINDS["attention"]):
        return "attention"
    for kind, names in _KINDS.items():
        if name in names:
            return kind
    return "element by element, and others"


def read(results: Any, steps: int, model: nn.Module | None) -> dict[str, Any]:
    """Seconds a step by operator, kind, part and module; `results` are kineto's."""
    paths = {} if model is None else {id(module): name for name, module in model.named_modules()}
    found = _Reading(paths)
    tree = results.experimental_event_tree()
    found.note_updates(tree)
    for root in sorted(tree, key=lambda event: int(event.start_time_ns)):
        found.walk(root)
    total = sum(found.parts.values())
    operators = sorted(found.operators.items(), key=lambda entry: -entry[1])
    kinds: dict[str, float] = defaultdict(float)
    for name, own in operators:
        kinds[kind_of(name)] += own
    kernels: dict[str, float] = defaultdict(float)
    for event in results.events():
        if event.device_type().name == "CUDA" and not event.is_user_annotation():
            kernels[event.name()] += event.duration_ns()

    def each(nanoseconds: float) -> float:
        return nanoseconds * 1e-9 / steps

    def most(table: dict[str, float], count: int) -> list[dict[str, Any]]:
        ordered = sorted(table.items(), key=lambda entry: -entry[1])[:count]
        return [{"name": name, "seconds": each(own)} for name, own in ordered]

    return {
        "operator_seconds": each(total),
        "parts": {name: each(own) for name, own in found.parts.items()},
        "kinds": {name: each(own) for name, own in sorted(kinds.items(), key=lambda entry: -entry[1])},
        "operators": [
            {"name": name, "calls": found.calls[name] / steps, "seconds": each(own)}
            for name, own in operators[:MOST_TOLD]
        ],
        "modules": [
            {
                "name": name,
                "forward": each(found.modules[name, FORWARD]),
                "backward": each(found.modules[name, BACKWARD]),
            }
            for name in _longest(found.modules)
        ],
        "kernels": most(kernels, MOST_TOLD),
        "kernel_seconds": each(sum(kernels.values())),
    }


def _longest(modules: dict[tuple[str, str], float]) -> list[str]:
    """The modules that took most, in the order in which they first ran."""
    sums: dict[str, float] = defaultdict(float)
    for (name, _), own in modules.items():
        sums[name] += own
    kept = sorted(sums, key=lambda name: -sums[name])[:MOST_MODULES]
    return [name for name in sums if name in kept]


class _Reading:
    """One tree of events, walked in time."""

    def __init__(self, paths: dict[int, str]) -> None:
        self._paths = paths
        self._updates: list[tuple[int, int]] = []
        self._module_of: dict[int, str] = {}  # by the sequence number of what autograd recorded
        self.operators: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.parts: dict[str, float] = dict.fromkeys((FORWARD, BACKWARD, UPDATE, ELSE), 0.0)
        self.modules: dict[tuple[str, str], float] = defaultdict(float)

    def note_updates(self, roots: Any) -> None:
        """When an optimizer was at work."""
        waiting = [*roots]
        while waiting:
            event = waiting.pop()
            if event.name.startswith("Optimizer.step#"):
                self._updates.append((event.start_time_ns, event.start_time_ns + event.duration_time_ns))
            waiting += event.children

    def walk(self, root: Any) -> None:
        """A root and all below it; not by recursion, since Python's calls nest deep."""
        waiting: list[tuple[Any, _Place]] = [(root, _Place())]
        while waiting:
            event, place = waiting.pop()
            place = self._entered(event, place)
            if _is_operator(event):
                self._count(event, place)
            waiting += [(child, place) for child in reversed(event.children)]

    def _entered(self, event: Any, place: _Place) -> _Place:
        fields = event.typed[1]
        module = getattr(fields, "module", None)
        if module is not None:
            # What runs in a module that is not of the model still is what the last one of the model did.
            return _Place(self._paths.get(module.self_ptr, place.module), place.backward, True)
        if event.name.startswith("autograd::engine::evaluate_function"):
            return _Place(self._module_of.get(fields.sequence_number), True, True)
        return place

    def _count(self, event: Any, place: _Place) -> None:
        own = event.duration_time_ns - sum(child.duration_time_ns for child in _operators_below(event))
        if event.name.startswith(("Optimizer.", "autograd::engine", "ProfilerStep")) or "Backward" in event.name:
            name = None  # no operator, but what is around some
        else:
            name = event.name
            self.calls[name] += 1
            self.operators[name] += max(0, own)
        sequence = getattr(event.typed[1], "sequence_number", -1)
        if sequence >= 0 and not place.backward and place.module is not None:
            self._module_of[sequence] = place.module
        if name is None and not place.backward:
            return
        updates = any(start <= event.start_time_ns < end for start, end in self._updates)
        part = UPDATE if updates else BACKWARD if place.backward else FORWARD if place.inside_module else ELSE
        self.parts[part] += max(0, own)
        if place.module is not None and part in (FORWARD, BACKWARD):
            self.modules[place.module, part] += max(0, own)


def _is_operator(event: Any) -> bool:
    return bool(event.typed[0].name == "TorchOp")


def _operators_below(event: Any) -> list[Any]:
    """The next operators below an event, through whatever Python calls are between."""
    found, waiting = [], [*event.children]
    while waiting:
        child = waiting.pop()
        if _is_operator(child):
            found.append(child)
        else:
            waiting += child.children
    return found
