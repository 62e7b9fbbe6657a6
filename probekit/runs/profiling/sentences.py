"""What a profile says in a sentence: what took most, what memory came to, what would help, what it cost itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from probekit.runs.profiling.phases import BETWEEN, IMPORTING, ITSELF
from probekit.runs.profiling.steps import median_of

MIB = 2**20
# An item that takes less of the whole is not named.
LEAST_NAMED = 0.1
MOST_NAMED = 3

Part = Mapping[str, Any]


def of_time(parts: Sequence[Part]) -> str:
    """`84 % of 12.1 s went into 500 steps of gradient-inverter (…); 12 % into importing packages (…).`"""
    whole = sum(part["seconds"] for part in parts)
    items = sorted(_items(parts), key=lambda item: -item[0])
    named = [item for item in items if item[0] >= LEAST_NAMED * whole][:MOST_NAMED] or items[:1]
    shares = [f"{seconds / whole:.0%}".replace("%", "\u00a0%") for seconds, _ in named]
    first, *others = [f"{share} {{}} {text}" for share, (_, text) in zip(shares, named, strict=True)]
    return "; ".join([first.format(f"of {whole:.1f} s went into"), *(other.format("into") for other in others)]) + "."


def _items(parts: Sequence[Part]) -> list[tuple[float, str]]:
    """What time went into: loops by their steps, and the phases that are no loops, with the words for each."""
    phases: dict[str, float] = defaultdict(float)
    packages: dict[str, float] = defaultdict(float)
    loops: dict[str, list[tuple[Part, Part]]] = defaultdict(list)
    in_loops: dict[str, float] = defaultdict(float)
    for part in parts:
        for phase in part["phases"]:
            phases[phase["name"]] += phase["seconds"]
        for name, seconds in part["imports"]["asked"].items():
            packages[name] += seconds
        for span in part["spans"]:
            if span["kind"] == "loop":
                loops[span["analysis"]].append((span, part))
                in_loops[span["analysis"]] += span["own_seconds"]
    for analysis in in_loops:  # where loops have others' phases inside them, such as those of the members of a pass
        in_loops[analysis] = min(in_loops[analysis], phases[analysis])
    items = [(in_loops[analysis], _steps(analysis, spans)) for analysis, spans in loops.items()]
    for name, seconds in phases.items():
        if name == IMPORTING:
            most = sorted(packages.items(), key=lambda entry: -entry[1])[:2]
            shown = ", ".join(f"{package} {taken:.1f} s" for package, taken in most)
            items.append((seconds, f"{IMPORTING} ({shown})" if shown else IMPORTING))
        elif name in in_loops:
            items.append((max(0.0, seconds - in_loops[name]), f"what {name} does outside of its loops"))
        elif name != BETWEEN:
            items.append((seconds, name))
    return items


def _steps(analysis: str, spans: Sequence[tuple[Part, Part]]) -> str:
    steps = sum(span["steps"] for span, _ in spans)
    longest, part = max(spans, key=lambda each: each[0]["own_seconds"])
    named = f"{steps:,} step{'s' if steps != 1 else ''} of {analysis}"
    if longest["median"] is None:
        return named
    known = [f"{1e3 * longest['median']:.3g} ms each"]
    for look in part["looks"]:
        if (look["analysis"], look["label"]) == (longest["analysis"], longest["label"]) and look["kinds"]:
            kind, seconds = next(iter(look["kinds"].items()))
            whole = max(median_of(look, part) or 0.0, look["operator_seconds"])
            known.append(f"{seconds / whole:.0%} of it in {kind}".replace("%", "\u00a0%"))
    return f"{named} ({', '.join(known)})"


def of_memory(parts: Sequence[Part]) -> str:
    """Where memory was greatest; empty where nobody tells."""
    phases = [phase for part in parts for phase in part["phases"]]
    most = max(phases, key=lambda phase: phase["resident"])
    if not most["resident"]:
        return ""
    sentence = (
        f"Memory came to {most['resident'] / MIB:,.0f} MiB in {most['name']}; the most that no file backs was "
        f"{max(phase['anonymous'] for phase in phases) / MIB:,.0f} MiB"
    )
    on_cuda = max(phases, key=lambda phase: phase["cuda"])
    if on_cuda["cuda"]:
        sentence += f", and on CUDA {on_cuda['cuda'] / MIB:,.0f} MiB in {on_cuda['name']}"
    imported = max((phase["anonymous"] for phase in phases if phase["name"] == IMPORTING), default=0)
    if imported:
        sentence += f". Importing packages alone came to {imported / MIB:,.0f} MiB of it"
    return sentence + "."


def advice(parts: Sequence[Part]) -> list[str]:
    """What would make the run faster, as far as its figures say."""
    whole = sum(part["seconds"] for part in parts)
    imports = sum(phase["seconds"] for part in parts for phase in part["phases"] if phase["name"] == IMPORTING)
    said = []
    taken = sum(phase["cpu_seconds"] for part in parts for phase in part["phases"])
    if taken < 0.7 * whole:
        said.append(
            f"The run had a processor for {taken:.1f} of {whole:.1f} s: it waited for others on this machine, for a "
            "disk or for another device. Processor time is what compares."
        )
    if imports >= 0.3 * whole:
        said.append(
            "Importing packages is paid once a process: several analyses and prompts in one run, or a study "
            "(probekit study) that loads each model once, share it."
        )
    for part in parts:
        for look in part["looks"]:
            step = median_of(look, part)
            if step is None:
                continue
            name = f"{look['analysis']}, {look['label']}"
            if look["operator_seconds"] < 0.5 * step and not look["kernels"]:
                said.append(
                    f"In a step of {name}, less than half of the time is in operators: more restarts or prompts in one "
                    "batch cost little more, and more steps cost in proportion."
                )
            elif look["kinds"].get("matrix products", 0.0) >= 0.5 * step:
                said.append(
                    f"In a step of {name}, matrix products take most: an earlier site, fewer restarts, a shorter "
                    "prompt or more threads (OMP_NUM_THREADS, where cores are free) make it faster."
                )
    return list(dict.fromkeys(said))[:MOST_NAMED]


def _threads(threads: int, cores: int) -> str:
    return f"{threads} thread{'s' if threads != 1 else ''} on {cores} core{'s' if cores != 1 else ''}"


def of_itself(parts: Sequence[Part]) -> str:
    """What the profile cost."""
    whole = sum(part["seconds"] for part in parts)
    looking = sum(phase["seconds"] for part in parts for phase in part["phases"] if phase["name"] == ITSELF)
    watching = sum(part["sampling"]["cpu_seconds"] for part in parts)
    threads = ", ".join(dict.fromkeys(_threads(part["threads"], part["cores"]) for part in parts))
    return (
        f"The profile itself took {looking:.2f} s ({looking / whole:.1%}) to look into steps and to weigh, and "
        f"{watching:.2f} s ({watching / whole:.1%}) of a processor to watch memory".replace("%", "\u00a0%")
        + ". Steps that were looked into are counted, and not in the distribution of steps. Left out: drawing this "
        f"page with its own time in it, and what comes after. Measured with {threads}; times are those of this "
        "machine, as busy as it was."
    )
