"""Writing a recording: one pass over the prompts, shard by shard, which a later call goes on with where it stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from probekit.activations.batching import BATCH_BYTES, BATCH_TOKENS, Numbered
from probekit.activations.format import (
    BATCHES,
    DTYPES,
    INDEX,
    INPUT_IDS,
    MANIFEST,
    POSITIONS,
    PROMPTS,
    SCHEMA,
    VOCABULARY,
    shard_header,
    shard_name,
)
from probekit.activations.live import LiveActivations
from probekit.activations.recording import Recording
from probekit.errors import AnalysisError, StorageError, UsageError
from probekit.files import LOCK, Lock, storing, write_whole, written_whole
from probekit.subject import Subject

# As much as a batch of a live model, so that both make the same batches.
SHARD_BYTES = BATCH_BYTES
# So many tokens are kept from the first look at the prompts; 8 MiB.
TOKENS_KEPT = 2**20
# The temporary files of a call that was killed: `written_whole`'s, and those that safetensors itself writes to first.
LEFT = re.compile(r"\.[\w-]+\.(json|jsonl|safetensors)\.\d+(-\w+)?\.tmp|\.tmp\w{6}")

Prompts = Callable[[], Iterable[Sequence[int]]]


@dataclass(frozen=True)
class Storage:
    """How activations are kept: their dtype (`auto` is the model's own), the most bytes of them in one shard, which are
    held in memory until it is written, and the most tokens that are computed at once.
    """

    dtype: str = "auto"
    shard_bytes: int = SHARD_BYTES
    batch_tokens: int = BATCH_TOKENS


def write(
    subject: Subject,
    prompts: Prompts,
    sites: str,
    path: Path,
    *,
    origin: Mapping[str, Any] | None = None,
    storage: Storage | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Recording:
    """Record the activations at these sites for all prompts into the folder `path`, or go on with it.

    `prompts` gives the token ids of every prompt, each time that it is called: to check and count them, and then to
    record. `origin` is kept in the manifest: what else decides the bits, such as the model spec and versions.
    `progress` is told how many tokens are done, of how many.

    What a killed process leaves is a recording without its last shards; called again with the same arguments, the rest
    is added, and the recording is byte for byte that of an uninterrupted call. Raises UsageError if the folder holds
    something else, or a recording of something else; for a prompt that the model does not take, before anything is
    computed; and as `LiveActivations.batches` does.
    """
    storage = storage or Storage()
    names = subject.expand_sites(sites)
    counted, again = _count(subject, prompts)
    manifest = {
        "schema": SCHEMA,
        "model": dict(subject.facts),
        "blocks": len(subject.anatomy.blocks),
        "sites": names,
        "prompts": counted,
        "storage": asdict(storage),
        "origin": dict(origin or {}),
    }
    with _alone(path):
        if not _begun(path, manifest):
            described = _described(subject, next(iter(prompts())), names, storage)
            _begin(path, manifest | {"sites": described}, subject)
        recording = Recording(path, unfinished=True)
        if not recording.complete:
            _record(recording, _Shards(subject, again, recording.manifest), progress)
        return Recording(path)


def _count(subject: Subject, prompts: Prompts) -> tuple[dict[str, Any], Prompts]:
    """How many prompts and tokens there are, and the hash of them all; every prompt is checked. And the prompts again:
    from memory where they are few, so that they are not tokenised twice.
    """
    count, tokens, digest = 0, 0, hashlib.sha256()
    kept: list[array[int]] = []
    for ids in prompts():
        subject.check_ids(ids, f"number {count}")
        digest.update(_bytes(ids))
        count += 1
        tokens += len(ids)
        if tokens <= TOKENS_KEPT:
            kept.append(array("q", ids))
        else:
            kept.clear()
    if count == 0:
        raise UsageError("There are no prompts to record; give at least one.")
    counted = {"count": count, "tokens": tokens, "sha256": digest.hexdigest()}
    return counted, (lambda: kept) if tokens <= TOKENS_KEPT else partial(_unchanged, prompts, counted)


def _bytes(ids: Sequence[int]) -> bytes:
    return torch.tensor([len(ids), *ids]).numpy().tobytes()


def _unchanged(prompts: Prompts, counted: Mapping[str, Any]) -> Iterator[Sequence[int]]:
    """The prompts once more. Raises UsageError at their end if they are not those that were counted."""
    digest = hashlib.sha256()
    for ids in prompts():
        digest.update(_bytes(ids))
        yield ids
    if digest.hexdigest() != counted["sha256"]:
        raise UsageError("The prompts have changed while they were recorded; record them anew, into another folder.")


def _described(
    subject: Subject, prompt: Sequence[int], sites: Sequence[str], storage: Storage
) -> dict[str, dict[str, Any]]:
    """The shape of one token's activation at each site, and the dtype in which it is kept; from the first prompt."""
    batch = LiveActivations(subject, list, 0).batch([(0, prompt)], sites)
    own = {site: str(batch[site].dtype).removeprefix("torch.") for site in sites}
    for site, dtype in own.items():
        if dtype not in DTYPES:
            raise UsageError(f"The site '{site}' returns {dtype} figures, which are no activation; choose another.")
    return {
        site: {"shape": list(batch[site].shape[2:]), "dtype": own[site] if storage.dtype == "auto" else storage.dtype}
        for site in sites
    }


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises UsageError where the folder or a file in it cannot be written, because a disk is full for example."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"The output '{path}' is not a directory that can be made; choose another.") from None
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"The output directory '{path}' cannot be written: {reason}.") from None


@contextmanager
def _adding(path: Path) -> Iterator[None]:
    """Raises StorageError where a recording that was begun cannot be gone on with, and says how it can later."""
    try:
        with storing(path):
            try:
                yield
            except SafetensorError as error:  # which says no more of an OSError than its text
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None
    except StorageError as error:
        again = " With that mended, the same command goes on with it." if path.is_dir() else ""
        raise StorageError(f"{error}{again}") from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While open, no other process writes to the folder, which is made; if nothing is in it in the end, it goes again.

    Raises UsageError if another process does, or if the folder cannot be made.
    """
    with _writing(path):
        made = [each for each in (path, *path.parents) if not each.exists()]  # the nearest first
        path.mkdir(parents=True, exist_ok=True)
    try:
        with _writing(path):
            lock = Lock(path / LOCK, f"the recording '{path}'")
        with lock.held():
            yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _begun(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the beginning of this very recording is in the folder, or all of it; what killed calls left is removed.

    Raises UsageError if there is something else.
    """
    with _writing(path):
        begun = (path / MANIFEST).is_file()
        if begun:
            _check_same(path, manifest)
        entries = list(path.iterdir()) if path.exists() else []
        left = [entry for entry in entries if LEFT.fullmatch(entry.name)]
        if not begun and any(entry.name not in (VOCABULARY, LOCK) and entry not in left for entry in entries):
            raise UsageError(f"The output directory '{path}' exists and is not empty; choose another, or remove it.")
        for temporary in left:
            temporary.unlink()
    return begun


def _begin(path: Path, manifest: Mapping[str, Any], subject: Subject) -> None:
    texts = subject.tokens(range(subject.vocabulary))
    with _writing(path):
        _write_text(path / VOCABULARY, json.dumps(texts) + "\n")
        # Last: what has a manifest is a recording.
        _write_text(path / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def _check_same(path: Path, manifest: Mapping[str, Any]) -> None:
    found = Recording(path, unfinished=True)
    both = (found.manifest | {"sites": found.sites}, json.loads(json.dumps(manifest)))
    was, now = (dict(_flat({**each, "model": {**each["model"], "device": None}})) for each in both)
    changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        more = f" ({len(changed)} differences in all)" if len(changed) > 1 else ""
        raise UsageError(
            f"The recording '{path}' was begun with another {key}: {was.get(key)!r} then, {now.get(key)!r} now{more}; "
            "go on with it as it was begun, or choose another output."
        )


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class _Shards:
    """The shards of a recording, in order: which prompts are in each, and its tensors."""

    def __init__(self, subject: Subject, prompts: Prompts, manifest: Mapping[str, Any]) -> None:
        self._subject = subject
        self._sites: dict[str, dict[str, Any]] = manifest["sites"]
        counted, storage = manifest["prompts"], manifest["storage"]
        row = sum(DTYPES[site["dtype"]].itemsize * prod(site["shape"]) for site in self._sites.values())
        self._most: int = storage["shard_bytes"] // row
        batch_tokens = min(storage["batch_tokens"], self._most)
        self._live = LiveActivations(subject, prompts, counted["count"], batch_tokens, storage["shard_bytes"])

    def __iter__(self) -> Iterator[list[list[Numbered]]]:
        """Batches in groups that fill a shard, of one batch at least."""
        shard: list[list[Numbered]] = []
        held = 0
        for batch in self._live.batches_of_prompts(list(self._sites)):
            size = tokens_in([batch])
            if shard and held + size > self._most:
                yield shard
                shard, held = [], 0
            shard.append(batch)
            held += size
        if shard:
            yield shard

    def tensors(self, shard: list[list[Numbered]]) -> dict[str, torch.Tensor]:
        """Compute what a shard has in it."""
        size = tokens_in(shard)
        tensors = {
            site: torch.empty(size, *kept["shape"], dtype=DTYPES[kept["dtype"]]) for site, kept in self._sites.items()
        }
        tensors |= {name: torch.empty(size, dtype=torch.long) for name in (INPUT_IDS, PROMPTS, POSITIONS)}
        starts = [0]
        for numbered in shard:
            batch = self._live.batch(numbered, list(self._sites))
            starts.append(starts[-1] + len(batch.positions))
            rows = slice(starts[-2], starts[-1])
            for site in self._sites:
                tensors[site][rows] = self._kept(site, batch.rows(site))
            tensors[INPUT_IDS][rows] = batch.row_ids
            tensors[PROMPTS][rows] = batch.row_prompts
            tensors[POSITIONS][rows] = batch.positions
        tensors[BATCHES] = torch.tensor(starts)
        return tensors

    def _kept(self, site: str, activations: torch.Tensor) -> torch.Tensor:
        """Activations in the dtype of the recording. Raises AnalysisError if they are not finite, or too large, and
        UsageError if they have another shape than the first prompt's.
        """
        shape = list(activations.shape[1:])
        if shape != self._sites[site]["shape"]:
            raise UsageError(
                f"The site '{site}' has an activation of {self._sites[site]['shape']} for a token of the first prompt "
                f"and of {shape} for another; choose one whose width does not depend on the prompt, such as a block."
            )
        dtype = DTYPES[self._sites[site]["dtype"]]
        kept = activations.to("cpu", dtype)
        # A sum is finite only if every term is, and costs less than to look at each; it may overflow where none did.
        if dtype.is_floating_point and not bool(kept.sum(dtype=torch.float64).isfinite()):
            self._subject.check_finite(activations, f"The activation at '{site}'")
            if not bool(kept.isfinite().all()):
                raise AnalysisError(
                    f"The activation at '{site}' reaches {activations.abs().max().item():.3g}, which is too large for "
                    f"{self._sites[site]['dtype']}; record it as bfloat16 or float32 (--store)."
                )
        return kept


def tokens_in(shard: Iterable[Sequence[Numbered]]) -> int:
    return sum(len(ids) for batch in shard for _, ids in batch)


def _record(recording: Recording, shards: _Shards, progress: Callable[[int, int], None]) -> None:
    """Add the shards that are missing, each with its line in the index."""
    path, recorded = recording.path, recording.shards
    with _adding(path):  # without a line that was torn
        _write_text(path / INDEX, "".join(f"{json.dumps(line)}\n" for line in recorded))
    done = 0
    for number, shard in enumerate(shards):
        if number >= len(recorded):
            tensors = shards.tensors(shard)
            with _adding(path):
                with written_whole(path / shard_name(number)) as place:
                    save_file(tensors, place, shard_header(recording.manifest, number))
                    with place.open("rb") as written:
                        digest = hashlib.file_digest(written, "sha256").hexdigest()
                size = {"prompts": sum(map(len, shard)), "tokens": tokens_in(shard)}
                line = {"shard": shard_name(number), **size, "sha256": digest}
                with (path / INDEX).open("a", encoding="utf-8") as index:
                    index.write(json.dumps(line) + "\n")
        done += tokens_in(shard)
        progress(done, recording.tokens)
