"""Recording activations against the bare forward pass: the embedded model, real prompts of mixed lengths.

A round records everything anew: prompts are read from a file, checked, tokenised and put into batches; activations are
captured, written and hashed. The bare side gets the very same batches ready-made, and does nothing but call the model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import probekit
from benchmarks.measure import Side, alternate
from benchmarks.outcome import Figure, Outcome, Settings
from benchmarks.process import TELLS, afresh, forget_peak, watched
from probekit.activations import Batching, LiveActivations, Recording, write

# The throughput that recording has to reach, as a part of the bare forward pass's.
GOAL = 0.9
PROMPTS = 400
# More anonymous memory for so many times the prompts than this is growth.
GOAL_MIB = 8.0
TIMES = 8

Batch = tuple[torch.Tensor, torch.Tensor]


def lines(count: int) -> list[str]:
    """Lines of this project's own documentation, short and long, as often as it takes."""
    folder = Path(__file__).resolve().parents[1]
    files = [folder / "README.md", folder / "CHANGELOG.md", *sorted((folder / "docs").rglob("*.md"))]
    texts = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    known = [text for text in texts if 20 < len(text) < 200]
    return (known * (count // len(known) + 1))[:count]


def batches(subject: probekit.Subject, prompts: Sequence[str]) -> list[Batch]:
    """The batches that recording makes of these prompts, as ids and masks."""
    ids = [subject.encode(prompt)[0].tolist() for prompt in prompts]
    return [subject.batch([row for _, row in batch]) for batch in Batching().batches(ids)]


def bare(subject: probekit.Subject, ready: Sequence[Batch]) -> Callable[[], None]:
    """The model itself on every batch, to its logits."""

    def forward() -> None:
        with torch.no_grad():
            for ids, mask in ready:
                subject.model(input_ids=ids, attention_mask=mask, use_cache=False)

    return forward


def recorded(subject: probekit.Subject, prompts: Sequence[str], sites: str, place: Path) -> Callable[[], None]:
    """A recording of all prompts, from texts to shards."""

    def record() -> None:
        shutil.rmtree(place, ignore_errors=True)
        write(subject, lambda: (subject.encode(prompt)[0].tolist() for prompt in prompts), sites, place)

    return record


def read(source: Callable[[], LiveActivations | Recording], sites: Sequence[str]) -> Callable[[], None]:
    """What an analysis sees of a source: every row at these sites, once."""

    def rows() -> None:
        for batch in source().batches(sites):
            for site in sites:
                batch.rows(site).sum()

    return rows


def growth(prompts: int) -> float:
    """The most memory, in MiB, that no file backs and that a recording of so many prompts takes beyond a first one."""
    subject = probekit.load()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(lines(prompts)), encoding="utf-8")
        probekit.record(prompts=lines(200), output=Path(folder) / "first", shard_bytes=4 * 2**20)
        del subject
        forget_peak()
        with watched() as peak:
            probekit.record(prompts=file, output=Path(folder) / "recording", shard_bytes=4 * 2**20)
        return peak.mib


def run(settings: Settings) -> Outcome:
    """Time recording in turns with the bare pass, and compare the memory of short and long recordings."""
    outcome = Outcome("Recording activations")
    subject = probekit.load()
    prompts = lines(40 if settings.quick else PROMPTS)
    ready = batches(subject, prompts)
    tokens = int(sum(mask.sum() for _, mask in ready))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        every, last = "record at every block", "record at the last block"
        plain = "bare forward pass"
        sides = [
            Side(plain, "floor", bare(subject, ready)),
            Side(every, "probekit", recorded(subject, prompts, "blocks", place / "every")),
            Side(last, "probekit", recorded(subject, prompts, "block.-1", place / "last")),
        ]
        timings = alternate(sides, settings.rounds(15), warmup=settings.rounds(2))
        outcome.time(f"{len(prompts)} prompts, {tokens} tokens", sides, timings)
        for name in (every, last):
            outcome.figure(f"throughput: {name} / {plain}", timings.ratio(plain, name), GOAL, "higher")
        ids = [subject.encode(prompt)[0].tolist() for prompt in prompts]
        sites = subject.expand_sites("blocks")
        from_model, from_disk = "read from the model", "read from a recording"
        sides = [
            Side(from_model, "probekit", read(lambda: LiveActivations(subject, lambda: ids, len(ids)), sites)),
            Side(from_disk, "probekit", read(lambda: Recording(place / "every"), sites)),
        ]
        timings = alternate(sides, settings.rounds(15), warmup=settings.rounds(2))
        outcome.time("every row at every block", sides, timings)
        outcome.figure(f"{from_model} / {from_disk}", timings.ratio(from_model, from_disk))
    if TELLS:
        few, many = (50, 100) if settings.quick else (2000, 2000 * TIMES)
        grown = afresh(growth, many) - afresh(growth, few)
        what = f"memory of recording {many:,} prompts − {few:,} prompts"
        outcome.figures.append(Figure(what, grown, unit="MiB", goal=GOAL_MIB))
    return outcome
