"""Weights that are not held: what a model of the shape of GPT-2 XL costs mapped, offloaded, cut and quantised.

Memory is anonymous memory, which no file backs: pages of a mapped checkpoint are the system's to drop. It is measured
in a process of its own for each way of loading, after the embedded model was loaded the same way, so that libraries
count neither as memory nor as time of loading. Weights are random; in a full run they take 6 GB of the temporary
folder, or of the folder that PROBEKIT_BENCH_MODELS names, where they stay for the next run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import call
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

import probekit
from benchmarks.descent import Descent
from benchmarks.measure import Side, Timings, alternate, by_round, order
from benchmarks.models import saved
from benchmarks.outcome import Figure, Outcome, Settings
from benchmarks.process import TELLS, AnonymousPeak, afresh, anonymous_mib, watched

# Calls a function with arguments, in a process of its own or in this one.
Apart = Callable[..., Any]
TOKENS = 16
GOAL_STEP_GB = 0.5
GOAL_MAPPED = 1.2
GOAL_DISK = 2.0
GOAL_CUT = 0.35
GOAL_GROWTH_MIB = 1.0
GOAL_CUDA_GB = 1.5
# The ways of loading that are compared with each other where only some blocks are kept.
CUT = {"bfloat16": {"dtype": "bfloat16"}, "int8": {"quantization": "int8"}}


@dataclass(frozen=True)
class Work:
    """A model, how much of it the CPU may hold where it is offloaded, and how often everything is done."""

    config: dict[str, Any]
    depth: int
    cpu: str
    rounds: int
    loads: int
    steps: int

    @property
    def blocks(self) -> int:
        return int(self.config["n_layer"])

    @property
    def disk(self) -> dict[str, Any]:
        return {"device_map": "auto", "max_memory": {"cpu": self.cpu}}


FULL = Work({"n_layer": 48, "n_embd": 1600, "n_head": 25}, depth=12, cpu="1GiB", rounds=6, loads=3, steps=200)
QUICK = Work(
    {"n_layer": 8, "n_embd": 256, "n_head": 4, "vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 0},
    depth=2,
    cpu="8MiB",
    rounds=3,
    loads=1,
    steps=12,
)


def descent(subject: probekit.Subject) -> Descent:
    """An inversion of the last block's activation of 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, subject.vocabulary, (1, TOKENS), generator=generator)
    layer_map = subject.layer_map("block.-1")
    embeddings = subject.embed(input_ids).float().cpu()
    with torch.no_grad():
        target = layer_map(embeddings)
    return Descent(layer_map, embeddings + 0.1 * torch.randn(embeddings.shape, generator=generator), target)


def step_times(folder: str, work: Work) -> Outcome:
    """A step with weights in memory, mapped from the checkpoint, on disk, and quantised, by turns in one process."""
    subjects = {
        "resident": probekit.load(folder),
        "mapped": probekit.load(folder),
        "on disk": probekit.load(folder, **work.disk),
        "int8": probekit.load(folder, quantization="int8"),
    }
    for weight in subjects["resident"].model.parameters():
        weight.data = weight.data.clone()
    descents = {name: descent(subject) for name, subject in subjects.items()}
    sides = [Side(name, "floor" if name == "resident" else "probekit", each.step) for name, each in descents.items()]
    timings = alternate(sides, work.rounds, warmup=1)
    found = Outcome("")
    label = f"a step, {work.blocks} blocks"
    found.time(label, sides, timings)
    found.figure(f"{label}: mapped / resident", timings.ratio("mapped", "resident"), GOAL_MAPPED)
    found.figure(f"{label}: on disk / resident", timings.ratio("on disk", "resident"), GOAL_DISK)
    found.figure(f"{label}: int8 / mapped", timings.ratio("int8", "mapped"))
    apart = max(
        float((descents[name].embeddings - descents["resident"].embeddings).detach().abs().max())
        for name in ("mapped", "on disk")
    )
    found.figures.append(Figure("embeddings after all steps: mapped, on disk − resident, at most", apart, unit=""))
    return found


@dataclass(frozen=True)
class Held:
    """Seconds of loading, and anonymous memory in MiB: of the process before, and what it has more than that."""

    seconds: float
    before: float
    loaded: float
    loading: float
    stepping: float


def held(folder: str, options: Mapping[str, Any], steps: int = 0) -> Held:
    """Load, take some steps, and watch this process all the while: `loading` and `stepping` are the most seen."""
    probekit.load("demo", quantization=options.get("quantization"))
    before = anonymous_mib()

    def more(mib: float) -> float:
        return max(mib - before, 1 / 16)  # never nothing, so that it has a ratio

    start = time.perf_counter()
    with watched() as loading:
        subject = probekit.load(folder, **options)
        seconds = time.perf_counter() - start
    loaded = anonymous_mib()
    with watched() as stepping:
        if steps:
            steepest = descent(subject)
            for _ in range(steps):
                steepest.step()
    return Held(seconds, before, more(loaded), more(max(loading.mib, loaded)), more(stepping.mib))


def growth(folder: str, work: Work) -> float:
    """MiB of anonymous memory that the last quarter of the steps of an offloaded model takes more than the second."""
    steepest = descent(probekit.load(folder, depth=work.depth, **work.disk))
    after = []
    for _ in range(work.steps):
        steepest.step()
        after.append(anonymous_mib())
    quarter = work.steps // 4
    return max(after[-quarter:]) - max(after[quarter : 2 * quarter])


def on_cuda(folder: str) -> float:
    """GB that the GPU holds at most in a step of a model whose weights are on the CPU."""
    subject = probekit.load(folder, device_map="auto", max_memory={0: "1GiB", "cpu": "64GiB"})
    steepest = descent(subject)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        steepest.step()
    return torch.cuda.max_memory_allocated() / 1e9


def command(folder: str, output: Path) -> tuple[float, AnonymousPeak, int]:
    """Seconds, memory and exit status of a short clamped walk on the quantised model, from the command line."""
    ids = ",".join(str(token) for token in range(100, 100 + TOKENS))
    walk = ["--plugin", "clamped-walk", "-o", "steps=2", "-o", "inner=[1]", "-o", "walkers=1", "-o", "noise_draws=1"]
    start = time.perf_counter()
    model = ["--model", folder, "--quantization", "int8", "--device-map", "auto"]
    argv = [sys.executable, "-m", "probekit", "run", *model, *walk, "--input-ids", ids, "--output", str(output)]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(argv, stdout=nowhere, stderr=nowhere) as process, watched(process.pid) as peak:
        status = process.wait()
    return time.perf_counter() - start, peak, status


def memory_of_steps(outcome: Outcome, folder: str, work: Work, apart: Apart) -> None:
    """What a step holds, each way of loading in a process of its own."""
    for name, options in {"mapped": {}, "on disk": work.disk, "int8": {"quantization": "int8"}}.items():
        found = apart(held, folder, options, steps=3)
        goal = GOAL_STEP_GB if name == "mapped" else None
        outcome.figures += [
            Figure(f"{name}: memory after loading, growth", gb(found.loaded), unit="GB"),
            Figure(f"{name}: memory in a step, growth", gb(found.stepping), unit="GB", goal=goal),
            Figure(f"{name}: memory in a step, all", gb(found.before + found.stepping), unit="GB", goal=goal),
        ]


def loading_some(outcome: Outcome, folder: str, work: Work, apart: Apart) -> None:
    """The first blocks against all, by turns, each load in a process of its own."""
    for name, options in CUT.items():
        whole, cut = f"all {work.blocks} blocks", f"{work.depth} blocks"
        ways = {whole: options, cut: {**options, "depth": work.depth}}
        loads: dict[str, list[Held]] = {way: [] for way in ways}
        for turn in range(work.loads):
            for place in order(len(ways), turn):
                way = list(ways)[place]
                loads[way].append(apart(held, folder, ways[way]))
        timings = Timings({way: [each.seconds for each in found] for way, found in loads.items()})
        label = f"loading as {name}"
        outcome.time(label, [Side(way, "probekit", lambda: None) for way in ways], timings)
        outcome.figure(f"{label}, {cut} / all: time", timings.ratio(cut, whole), GOAL_CUT)
        for what in ("loaded", "loading"):
            ratio = by_round(*([getattr(each, what) for each in loads[way]] for way in (cut, whole)))
            most = gb(max(getattr(each, what) for each in loads[whole]))
            shown = "memory after" if what == "loaded" else "most memory"
            outcome.figure(f"{label}, {cut} / all: {shown}", ratio, GOAL_CUT)
            outcome.figures.append(Figure(f"{label}, all: {shown}, growth", most, unit="GB"))


def gb(mib: float) -> float:
    return mib * 2**20 / 1e9


def run(settings: Settings) -> Outcome:
    """Every way of loading the same weights."""
    outcome = Outcome("Weights that are not held")
    if not TELLS:
        outcome.notes.append("Left out: it reads what only Linux tells.")
        return outcome
    work = QUICK if settings.quick else FULL
    apart: Apart = call if settings.quick else afresh  # a process takes seconds to start
    with saved("small" if settings.quick else "gpt2-xl", GPT2Config(**work.config)) as folder:
        stepped = apart(step_times, folder, work)
        outcome.sides += stepped.sides
        outcome.figures += stepped.figures
        memory_of_steps(outcome, folder, work, apart)
        loading_some(outcome, folder, work, apart)
        with tempfile.TemporaryDirectory() as output:
            seconds, peak, status = command(folder, Path(output) / "run")
        outcome.figures += [
            Figure("probekit run, int8, --device-map auto: exit status", status, unit="", goal=0),
            Figure("probekit run, int8, --device-map auto: all of it", seconds, unit="s"),
            Figure("probekit run, int8, --device-map auto: most memory, all", gb(peak.mib), unit="GB"),
        ]
        quarter = work.steps // 4
        windows = f"steps {3 * quarter + 1}–{work.steps} − steps {quarter + 1}–{2 * quarter}"
        grown = apart(growth, folder, work)
        outcome.figures.append(
            Figure(f"on disk, {work.depth} blocks: memory, {windows}", grown, unit="MiB", goal=GOAL_GROWTH_MIB)
        )
        if torch.cuda.is_available():
            on_gpu = apart(on_cuda, folder)
            outcome.figures.append(
                Figure("weights on the CPU: GPU memory in a step", on_gpu, unit="GB", goal=GOAL_CUDA_GB)
            )
        else:
            outcome.notes.append("GPU memory with weights on the CPU: not run, no CUDA device.")
    return outcome
