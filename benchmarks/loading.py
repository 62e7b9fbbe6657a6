"""What it takes to read a block of a model that lies on disk, when only the first blocks are needed.

GPT-2, 3 of 12 blocks: from the start of loading to the third block's activation of a prompt. Each load is in a process
of its own, after a small model was loaded and read the same way, so that libraries count neither as time nor as memory.
The floor is a config that is cut by hand; peers load the whole, since they have no other way, and stop after block 3.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from operator import call
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

import probekit
from benchmarks.comparison import judged, tabulate
from benchmarks.measure import Role, Timings, order
from benchmarks.models import TOKENS, saved
from benchmarks.outcome import Figure, Outcome, Row, Settings
from benchmarks.peers.bare_hooks import read_block
from benchmarks.peers.known import not_installed, quiet, said
from benchmarks.process import TELLS, afresh, anonymous_mib, forget_peak, peak_mib, resident_mib, watched
from benchmarks.shapes import GPT2

DEPTH = 3
LOADS = 3


def cut_by_hand(folder: str, input_ids: torch.Tensor, depth: int) -> torch.Tensor:
    """transformers with a config of so many blocks; the weights of the others are passed over."""
    config = AutoConfig.from_pretrained(folder)
    config.n_layer = depth
    model: Any = AutoModelForCausalLM.from_pretrained(folder, config=config)
    return read_block(model, model.transformer.h[depth - 1], input_ids)


def by_transformers(folder: str, input_ids: torch.Tensor, depth: int) -> torch.Tensor:
    """The whole model, and a hook that stops."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return read_block(model, model.transformer.h[depth - 1], input_ids)


def by_probekit(folder: str, input_ids: torch.Tensor, depth: int, cut: bool) -> torch.Tensor:
    """`probekit.load` and `capture`."""
    site = f"block.{depth - 1}"
    return probekit.load(folder, depth=depth if cut else None).capture(input_ids, [site])[site]


def by_nnsight(folder: str, input_ids: torch.Tensor, depth: int) -> torch.Tensor:
    """nnsight's model, and a trace that stops."""
    from nnsight.modeling.transformers import TransformersModel

    model: Any = TransformersModel(folder, task="text-generation", dispatch=True)
    with torch.no_grad(), model.trace(input_ids, use_cache=False) as tracer:
        activation = model.transformer.h[depth - 1].output.save()
        tracer.stop()
    found: torch.Tensor = activation
    return found


def by_transformer_lens(folder: str, input_ids: torch.Tensor, depth: int) -> torch.Tensor:
    """TransformerLens' bridge, stopped at a layer."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(folder, device="cpu")
    with torch.no_grad():
        found: torch.Tensor = bridge(input_ids, stop_at_layer=depth)
    return found


@dataclass(frozen=True)
class Way:
    """A side: how it loads and reads, and the package it takes."""

    side: str
    role: Role
    read: Callable[[str, torch.Tensor, int], torch.Tensor]
    package: str | None = None

    @property
    def title(self) -> str:
        return self.side if self.package is None else f"{self.side} {version(self.package)}"


WAYS = (
    Way("config cut by hand", "floor", cut_by_hand),
    Way("probekit", "probekit", partial(by_probekit, cut=True)),
    Way("probekit, whole", "probekit", partial(by_probekit, cut=False)),
    Way("transformers, whole", "peer", by_transformers),
    Way("nnsight", "peer", by_nnsight, "nnsight"),
    Way("TransformerLens", "peer", by_transformer_lens, "transformer-lens"),
)
LEFT_OUT = {
    "HookedTransformer": "not possible: it loads models by their names, not from a folder",
    "pyvene": "not possible: it loads nothing itself, but wraps a model of transformers",
}


@dataclass(frozen=True)
class Loaded:
    """What one load came to: seconds, the most memory it had beyond what there was before, and the activation."""

    seconds: float
    resident_mib: float
    anonymous_mib: float
    activation: torch.Tensor


def load(way: int, small: str, folder: str, depth: int) -> Loaded:
    """Load and read a small model first, then the one that is measured."""
    input_ids = torch.arange(TOKENS)[None]
    read = WAYS[way].read
    with quiet():
        read(small, input_ids, 1)
        gc.collect()
        forget_peak()
        resident, anonymous = resident_mib(), anonymous_mib()
        start = time.perf_counter()
        with watched() as most:
            activation = read(folder, input_ids, depth).detach().clone()
            seconds = time.perf_counter() - start
            most.glance()
    return Loaded(seconds, peak_mib() - resident, max(most.mib - anonymous, 0.0), activation)


def settle(folder: Path) -> None:
    """Let files that were just made look an hour old: probekit keeps the hash of weights only once they are at rest."""
    before = time.time() - 3600
    for file in folder.iterdir():
        if file.stat().st_mtime > before:
            os.utime(file, (before, before))


def run(settings: Settings) -> Outcome:
    """Every side in turns, each load in a process of its own."""
    outcome = Outcome("Loading a model to read one of its first blocks")
    if not TELLS:
        outcome.notes.append("Left out: it reads what only Linux tells.")
        return outcome
    depth = 1 if settings.quick else DEPTH
    apart: Callable[..., Loaded] = call if settings.quick else afresh  # a process takes seconds to start
    measured = ("gpt2-tiny", GPT2.small) if settings.quick else ("gpt2", GPT2.config)
    with saved("gpt2-tiny", GPT2Config(**GPT2.small)) as small, saved(measured[0], GPT2Config(**measured[1])) as folder:
        settle(Path(folder))
        rows, loads = first_loads(partial(apart, load, small=small, folder=folder, depth=depth))
        titles = [row.side for row in rows if not row.left_out]
        for turn in range(1, 1 if settings.quick else LOADS):
            for place in order(len(titles), turn):
                way = next(number for number, row in enumerate(rows) if row.side == titles[place])
                loads[titles[place]].append(apart(load, way, small, folder, depth))
    work = f"GPT-2, block {depth} of {GPT2.small['n_layer'] if settings.quick else 12}"
    timings = Timings({title: [each.seconds for each in loads[title]] for title in titles})
    rows += [Row(side, "peer", left_out=reason) for side, reason in LEFT_OUT.items()]
    tabulate(outcome, work, rows, timings)
    outcome.failures += [f"{work}: {row.side}: {row.left_out}." for row in rows if row.failed]
    for title in titles:
        for what, field in (("most memory", "resident_mib"), ("most of it that no file backs", "anonymous_mib")):
            most = max(getattr(each, field) for each in loads[title])
            outcome.figures.append(Figure(f"{title}: {what}, growth", most, unit="MiB"))
    return outcome


def first_loads(apart: Callable[..., Loaded]) -> tuple[list[Row], dict[str, list[Loaded]]]:
    """A load by each side that is there, and whether it read the same."""
    rows: list[Row] = []
    loads: dict[str, list[Loaded]] = {}
    floor: list[torch.Tensor] = []
    for number, way in enumerate(WAYS):
        try:
            title = way.title
        except PackageNotFoundError:
            rows.append(Row(way.side, way.role, left_out=not_installed(way.package)))
            continue
        try:
            found = apart(way=number)
        except Exception as error:
            if way.role != "peer":
                raise
            rows.append(Row(title, way.role, left_out=f"failed: {said(error)}", failed=True))
            continue
        rows.append(judged(title, way.role, [found.activation], floor) if floor else Row(title, way.role))
        floor = floor or [found.activation]
        loads[title] = [found]
    return rows, loads
