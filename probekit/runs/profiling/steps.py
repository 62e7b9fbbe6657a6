"""What a look into some steps of a loop found, on the page: parts, operators, modules, blocks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from probekit.report import Page

PARTS = {
    "forward": "forward",
    "backward": "backward",
    "update": "the optimizer's update",
    "else": "other operators, such as the loss",
}
OUTSIDE = "outside of operators: Python, and waiting"


def draw_look(page: Page, look: Mapping[str, Any], part: Mapping[str, Any]) -> None:
    """One look: where a step's time goes, from coarse to fine."""
    count = look["steps"]
    page.heading(f"A step of {look['analysis']}, {look['label']}")
    step, rows = median_of(look, part), []
    whole = max(step or 0.0, look["operator_seconds"])
    for name, shown in PARTS.items():
        if look["parts"].get(name):
            rows.append([shown, *_figures(look["parts"][name], whole)])
    if whole > look["operator_seconds"]:
        rows.append([OUTSIDE, *_figures(whole - look["operator_seconds"], whole)])
    steps = "one step" if count == 1 else f"{count} steps"
    page.table(
        ["part of a step", "ms", "share, %"],
        rows,
        caption=f"Parts of a step, from {steps} under torch's profiler",
        remark="The share is of the median step without the profiler, or of the operators where those are longer.",
    )
    page.table(
        ["kind of operator", "ms", "share, %"],
        [[name, *_figures(seconds, whole)] for name, seconds in look["kinds"].items()],
        caption="Operators by kind",
    )
    _modules(page, look)
    page.table(
        ["operator", "times a step", "ms", "share, %"],
        [[entry["name"], round(entry["calls"], 1), *_figures(entry["seconds"], whole)] for entry in look["operators"]],
        caption="Operators that took most, without those inside them",
        collapsed=True,
    )
    if look["kernels"]:
        page.table(
            ["kernel", "ms", "share, %"],
            [[entry["name"], *_figures(entry["seconds"], look["kernel_seconds"])] for entry in look["kernels"]],
            caption=f"Kernels on CUDA, of {1e3 * look['kernel_seconds']:.3g} ms a step there",
        )
        page.note("On CUDA an operator's time is that of launching it; what the device does, the kernels tell.")


def _modules(page: Page, look: Mapping[str, Any]) -> None:
    """Parts of a block over all blocks, and blocks over all their parts."""
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    blocks: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for module in look["modules"]:
        block, kind = placed(module["name"])
        for sums, name in ((kinds, kind), *([(blocks, block)] if block else [])):
            sums[name][0] += module["forward"]
            sums[name][1] += module["backward"]
    whole = sum(map(sum, kinds.values()))
    if not whole:
        return
    page.table(
        ["module", "forward, ms", "backward, ms", "share, %"],
        [[name, *map(_ms, sums), round(100 * sum(sums) / whole, 1)] for name, sums in _longest_first(kinds)],
        caption="Modules: parts of a block, over all blocks, and what is outside of blocks",
        remark="A backward operator counts to the module whose forward operator it belongs to.",
    )
    if len(blocks) > 1:
        series = {
            name: [(block, _ms(sums[place])) for block, sums in blocks.items()]
            for place, name in enumerate(("forward", "backward"))
        }
        page.lines(series, x="block", y="ms a step", caption="Blocks")


def placed(path: str) -> tuple[str, str]:
    """The block of a module, `h.3`, or an empty text outside of blocks; and the part of the block, or its own path."""
    found = re.match(r"(?:.*?\.)?(?P<block>[^.]+\.\d+)(?:\.(?P<part>[^.]+))?", path)
    if found is None:
        return "", path or "the model itself"
    return found["block"], found["part"] or "the block itself"


def median_of(look: Mapping[str, Any], part: Mapping[str, Any]) -> float | None:
    """The median step of the loop that was looked into, in seconds."""
    for span in part["spans"]:
        if (span["analysis"], span["label"], span["kind"]) == (look["analysis"], look["label"], "loop"):
            median: float | None = span["median"]
            return median
    return None


def _longest_first(sums: Mapping[str, list[float]]) -> list[tuple[str, list[float]]]:
    return sorted(sums.items(), key=lambda entry: -sum(entry[1]))


def _figures(seconds: float, whole: float) -> tuple[float, float | None]:
    return _ms(seconds), round(100 * seconds / whole, 1) if whole else None


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.3g}")
