"""Recordings of others: every document and every byte of them changed, shards swapped, links, forged hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

import probekit
from probekit.activations import Recording
from probekit.activations.format import shard_header
from probekit.cli.runs import show
from probekit.plugins import Plugins
from probekit.runs.config import resolve
from probekit.runs.index import index_runs
from probekit.runs.verify import verify
from tests.activations.recordings import made_up, record_ids
from tests.fuzz.harness import Target, answer, few, limited_in_time, many, only_in
from tests.fuzz.places import scratch
from tests.fuzz.values import RAW, byte_changes, changes, json_text, json_values, with_byte_changes, with_changes

DOCUMENTS = ["recording.json", "recording.json", "index.jsonl", "vocabulary.json"]
SHARDS = ["shard-00000.safetensors", "shard-00001.safetensors"]
INDEX = ["index/input_ids", "index/prompts", "index/positions", "index/batches"]
SITES = ["block.0", "norm"]
KINDS = ["removed", "folder", "link out", "link to itself", "empty", "swapped", "one more"]


class Made:
    """A recording, file by file; filled in by the fixture, since it takes a model."""

    files: dict[str, bytes]
    plugins: Plugins


@pytest.fixture(scope="module", autouse=True)
def _made(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("recordings") / "recording"
    recording = record_ids(probekit.load(tiny_gpt2()), folder, made_up(24), sites="block.0,norm")
    assert len(recording.shards) >= 2
    Made.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Made.plugins = Plugins()
    yield
    del Made.files, Made.plugins


def tensor_changes() -> st.SearchStrategy[tuple[str, str, int, Any]]:
    """A tensor of a shard, how it is changed, a place in it, and a number."""
    how = st.sampled_from(["number", "number", "cut", "longer", "dtype", "shape", "gone", "other", "fill"])
    number = st.sampled_from([0, 1, -1, 2**31, 2**62, -(2**63), 2**63 - 1, 7]) | st.integers(-5, 40)
    return st.tuples(st.sampled_from(INDEX + SITES), how, st.integers(0, 500), number)


def with_tensors(content: bytes, chosen: list[tuple[str, str, int, Any]]) -> dict[str, torch.Tensor]:
    tensors = load(content)
    for name, how, place, number in chosen:
        tensor = tensors.get(name)
        if tensor is None or tensor.numel() == 0:
            continue
        flat = tensor.reshape(-1).clone()
        if how == "number":
            flat[place % flat.numel()] = number
            tensors[name] = flat.reshape(tensor.shape)
        elif how == "cut":
            tensors[name] = tensor[: place % len(tensor)].clone()
        elif how == "longer":
            tensors[name] = torch.cat([tensor, tensor[:1]])
        elif how == "dtype":
            kinds = [
                torch.float16,
                torch.int32,
                torch.uint8,
                torch.bool,
                torch.float64,
                torch.complex64,
                torch.bfloat16,
            ]
            tensors[name] = tensor.to(kinds[place % len(kinds)])
        elif how == "shape":
            tensors[name] = [tensor[None], tensor.reshape(-1), tensor[:1].reshape(-1)[:1].reshape(())][
                place % 3
            ].clone()
        elif how == "gone":
            del tensors[name]
        elif how == "other":
            tensors[name + "x"] = tensor.clone()
        elif how == "fill":
            tensors[name] = torch.full_like(tensor, number)
    return tensors


def damages() -> st.SearchStrategy[list[tuple[str, Any]]]:
    documents = st.tuples(st.sampled_from(DOCUMENTS), changes | json_values)
    tensors = st.tuples(st.sampled_from(SHARDS), st.lists(tensor_changes(), min_size=1, max_size=3))
    return st.lists(
        st.tuples(st.just("json"), documents)
        | st.tuples(st.just("json"), documents)
        | st.tuples(st.just("tensors"), tensors)
        | st.tuples(st.just("tensors"), tensors)
        | st.tuples(st.just("bytes"), st.tuples(st.sampled_from(DOCUMENTS + SHARDS), byte_changes))
        | st.tuples(st.just("file"), st.tuples(st.sampled_from(DOCUMENTS + SHARDS), st.sampled_from(KINDS)))
        | st.tuples(st.just("forge"), st.none()),
        min_size=1,
        max_size=3,
    )


def document_of(name: str, content: bytes) -> Any:
    if name == "index.jsonl":
        return [json.loads(line) for line in content.decode().splitlines()]
    return json.loads(content)


def text_of(name: str, document: Any) -> bytes:
    if name == "index.jsonl" and isinstance(document, list):
        return "".join(json_text(line) + "\n" for line in document).encode()
    return json_text(document).encode()


def forged(files: dict[str, bytes]) -> None:
    """Headers that fit the manifest, and hashes that fit the shards: whoever forges one forges the rest."""
    try:
        manifest = json.loads(files["recording.json"])
        for number, shard in enumerate(SHARDS):
            files[shard] = save(load(files[shard]), shard_header(manifest, number))
        lines = document_of("index.jsonl", files["index.jsonl"])
        for line, shard in zip(lines, SHARDS, strict=False):
            line["sha256"] = hashlib.sha256(files[shard]).hexdigest()
            line["tokens"] = len(load(files[shard])["index/input_ids"])
        files["index.jsonl"] = text_of("index.jsonl", lines)
        if isinstance(manifest.get("prompts"), dict):
            manifest["prompts"]["tokens"] = sum(line["tokens"] for line in lines)
            files["recording.json"] = json.dumps(manifest).encode()
            for number, shard in enumerate(SHARDS):
                files[shard] = save(load(files[shard]), shard_header(manifest, number))
    except Exception:  # what cannot be forged stays as it is
        return


def put(folder: Path, chosen: list[tuple[str, Any]]) -> None:
    files, later = dict(Made.files), []
    for kind, what in chosen:
        if kind == "json":
            name, change = what
            try:
                document = document_of(name, files[name])
            except (ValueError, RecursionError):
                continue
            way = isinstance(change, list) and all(isinstance(part, tuple) and len(part) == 3 for part in change)
            files[name] = text_of(name, with_changes(document, change) if way and change else change)
        elif kind == "tensors":
            try:
                tensors = with_tensors(files[what[0]], what[1])
                header = shard_header(json.loads(Made.files["recording.json"]), SHARDS.index(what[0]))
                files[what[0]] = save(tensors, header)
            except Exception:  # a damaged shard is damaged enough
                continue
        elif kind == "bytes":
            files[what[0]] = with_byte_changes(files[what[0]], what[1])
        elif kind == "forge":
            forged(files)
        else:
            later.append(what)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    outside = folder.parent.parent / "outside"
    for name, kind in later:
        place = folder / name
        (outside / name).write_bytes(files[name])
        if place.is_dir() or place.is_symlink():  # which an earlier damage made of it
            continue
        if kind == "swapped":
            other = folder / SHARDS[1 - SHARDS.index(name)] if name in SHARDS else folder / "vocabulary.json"
            place.write_bytes(other.read_bytes() if other.is_file() else b"")
        elif kind == "one more":
            (folder / "shard-00099.safetensors").write_bytes(files[name])
        elif place.is_file() or place.is_symlink():
            place.unlink()
            if kind == "folder":
                place.mkdir()
            elif kind == "link out":
                place.symlink_to(outside / name)
            elif kind == "link to itself":
                place.symlink_to(name)
            elif kind == "empty":
                place.write_bytes(b"")


def check(chosen: list[tuple[str, Any]]) -> None:
    with scratch() as own:
        folder = own / "recording"
        folder.mkdir()
        put(folder, chosen)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        with only_in(own):
            read(own, folder, size)


def read(own: Path, folder: Path, size: int) -> None:
    recording = answer(lambda: Recording(folder))
    if recording is None:
        recording = answer(lambda: Recording(folder, unfinished=True))
    index = index_runs(own)
    json.dumps(index.document(), allow_nan=False)
    show(index, None)
    verified = answer(lambda: verify(folder))
    if verified is not None:
        json.dumps(verified.document(), allow_nan=False)
    layer = ("python", {"activations": str(folder), "plugins": ["activation-statistics"]})
    resolved = answer(lambda: resolve([layer], Made.plugins))
    if resolved is not None:
        resolved.config.to_toml().encode()
        json.dumps(resolved.document(), allow_nan=False)
    if recording is None:
        return
    answer(recording.verify)
    assert recording.bytes <= 10 * size
    sites = answer(lambda: recording.expand_sites("blocks,norm"))
    answer(lambda: [recording.shape(site) for site in recording.sites])
    answer(lambda: [recording.dtype(site) for site in recording.sites])
    answer(lambda: recording.first_prompts(3))
    for names in (sites or [], recording.sites):
        seen = 0

        def batches(names: list[str] = names) -> None:
            nonlocal seen
            for batch in recording.batches(names):
                seen += batch.mask.numel()
                batch.tokens()
                for name in names:
                    batch.activations[name].sum()
                assert batch.mask.numel() * 32 <= 100 * size

        answer(batches)
    rows = answer(recording.dataset)
    if rows is not None and len(rows):
        answer(lambda: rows[0])
        answer(lambda: rows[[len(rows) - 1, 0]])
        answer(lambda: rows[-3:])


TARGETS = [Target("recordings", damages(), check, few=60, many=9000)]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_a_damaged_recording_is_read_or_refused_with_a_sentence(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


def test_a_forged_recording_is_read_as_a_whole_one() -> None:
    """What the forger above does is enough: nothing refuses what it makes of an undamaged recording."""
    with scratch() as own:
        (own / "recording").mkdir()
        put(own / "recording", [("forge", None)])
        recording = Recording(own / "recording")
        recording.verify()
        assert sum(len(batch.prompts) for batch in recording.batches(["norm"])) == recording.prompt_count


@pytest.mark.parametrize("name", sorted({*DOCUMENTS, *SHARDS}))
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_in_each_state(name: str, kind: str) -> None:
    check([("file", (name, kind))])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DOCUMENTS)))
@pytest.mark.parametrize("raw", [*RAW.values(), "", "[]", "{}", "null", '"', "\ufeff{}", "\0", "{}\n", "[]\n"])
def test_each_document_that_is_none(name: str, raw: str) -> None:
    with scratch() as own, limited_in_time():
        (own / "recording").mkdir()
        put(own / "recording", [])
        (own / "recording" / name).write_text(raw, encoding="utf-8")
        with only_in(own):
            read(own, own / "recording", 10**6)


@pytest.mark.parametrize("name", sorted({*DOCUMENTS, *SHARDS}))
def test_nobody_waits_for_a_pipe(name: str) -> None:
    with scratch() as own, limited_in_time():
        (own / "recording").mkdir()
        put(own / "recording", [])
        (own / "recording" / name).unlink()
        os.mkfifo(own / "recording" / name)
        read(own, own / "recording", 10**6)
