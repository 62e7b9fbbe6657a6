"""Recordings that are damaged, or made to do harm: one sentence each, no traceback, no hang and no huge allocation."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import probekit
from probekit.activations import Recording
from probekit.activations.format import shard_header
from probekit.errors import UsageError
from tests.activations.recordings import PROMPTS, SMALL, contents, record_ids

HUGE = 10**15


@contextmanager
def bounded(more: int = 1 << 30, seconds: int = 20) -> Iterator[None]:
    """With so much more address space than there is now, and so much time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def read_all(folder: Path) -> None:
    """Everything that a reader does."""
    with bounded():
        recording = Recording(folder)
        recording.first_prompts(3)
        for batch in recording.batches(recording.sites):
            batch.tokens()
        dataset = recording.dataset()
        dataset[:]
        recording.verify()


def refusal(folder: Path) -> str:
    """The one sentence that reading ends with."""
    with pytest.raises(UsageError) as refused:
        read_all(folder)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "recording.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")


def edit_line(folder: Path, number: int, **changes: Any) -> None:
    file = folder / "index.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines[number] |= changes
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def edit_shard(folder: Path, number: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a shard, and leave what its header says of it."""
    path = folder / f"shard-{number:05d}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata)


def test_a_sound_recording_is_read(recorded: Recording) -> None:
    read_all(recorded.path)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recording.json", "vocabulary.json", "index.jsonl", "shard-00001.safetensors"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    sentence = refusal(copied)
    assert str(copied) in sentence
    assert name in sentence or "go on with it by the `probekit record` command" in sentence


@pytest.mark.parametrize("name", ["recording.json", "vocabulary.json", "index.jsonl", "shard-00001.safetensors"])
def test_a_folder_in_place_of_a_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    (copied / name).mkdir()
    assert str(copied) in refusal(copied)


@pytest.mark.parametrize("name", ["recording.json", "vocabulary.json", "shard-00001.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_damaged(copied: Path, name: str, share: float) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: int(len(content) * share)])
    sentence = refusal(copied)
    assert "damaged" in sentence
    assert name in sentence


def test_a_truncated_index_is_an_unfinished_recording_that_the_same_call_completes(
    subject: probekit.Subject, recorded: Recording, copied: Path
) -> None:
    file = copied / "index.jsonl"
    whole = file.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "go on with it" in refusal(copied)
    record_ids(subject, copied)
    assert contents(copied) == contents(recorded.path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"\0" * 50, b"[" * 100_000, b"nonsense", b"null", b"5", b'{"a": NaN}']
)
@pytest.mark.parametrize("name", ["recording.json", "vocabulary.json", "index.jsonl"])
def test_other_bytes_in_a_file_are_damage(copied: Path, name: str, content: bytes) -> None:
    (copied / name).write_bytes(content + b"\n")
    assert name in refusal(copied) or name == "recording.json"


@pytest.mark.parametrize("path", ["nowhere", "", "recording.json"])
def test_a_path_to_no_recording_is_a_sentence(copied: Path, path: str) -> None:
    (copied / "empty").mkdir()
    for folder in (copied / "empty" / path, copied / path / "x", Path("a" * 5000)):
        with pytest.raises(UsageError):
            Recording(folder)


# --- the manifest ----------------------------------------------------------------------------------------------------

SITE = {"shape": [32], "dtype": "float32"}
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another schema": lambda m: m.update(schema=2),
    "a schema in words": lambda m: m.update(schema="1"),
    "no schema": lambda m: m.pop("schema"),
    "no model": lambda m: m.pop("model"),
    "a model that is a list": lambda m: m.update(model=[]),
    "no blocks": lambda m: m.pop("blocks"),
    "negative blocks": lambda m: m.update(blocks=-1),
    "blocks in words": lambda m: m.update(blocks="3"),
    "no sites": lambda m: m.update(sites={}),
    "sites in a list": lambda m: m.update(sites=["block.0"]),
    "a site without a shape": lambda m: m["sites"].update({"norm": {"dtype": "float32"}}),
    "a site of no dtype": lambda m: m["sites"].update({"norm": {**SITE, "dtype": "float8"}}),
    "a dtype that is a list": lambda m: m["sites"].update({"norm": {**SITE, "dtype": []}}),
    "a shape that is a number": lambda m: m["sites"].update({"norm": {**SITE, "shape": 32}}),
    "a shape in a table": lambda m: m["sites"].update({"norm": {**SITE, "shape": {}}}),
    "a negative shape": lambda m: m["sites"].update({"norm": {**SITE, "shape": [-32]}}),
    "a huge shape": lambda m: m["sites"].update({"norm": {**SITE, "shape": [HUGE]}}),
    "a shape beyond numbers": lambda m: m["sites"].update({"norm": {**SITE, "shape": [10**40]}}),
    "a shape of another width": lambda m: m["sites"].update({"norm": {**SITE, "shape": [16, 2]}}),
    "another dtype": lambda m: m["sites"].update({"norm": {**SITE, "dtype": "int32"}}),
    "a site more": lambda m: m["sites"].update({"logits": SITE}),
    "a site that climbs out": lambda m: m["sites"].update({"../../etc/passwd": SITE}),
    "no prompts": lambda m: m.pop("prompts"),
    "prompts in a list": lambda m: m.update(prompts=[1]),
    "a negative count": lambda m: m["prompts"].update(count=-1),
    "a huge count": lambda m: m["prompts"].update(count=HUGE),
    "a count of too many": lambda m: m["prompts"].update(count=m["prompts"]["count"] + 1),
    "a count of too few": lambda m: m["prompts"].update(count=m["prompts"]["count"] - 1),
    "tokens that are no whole number": lambda m: m["prompts"].update(tokens=1.5),
    "tokens that are true": lambda m: m["prompts"].update(tokens=True),
    "huge tokens": lambda m: m["prompts"].update(tokens=HUGE),
    "more tokens": lambda m: m["prompts"].update(tokens=m["prompts"]["tokens"] + 1),
    "other prompts": lambda m: m["prompts"].update(sha256="0" * 64),
    "no storage": lambda m: m.pop("storage"),
    "no batch": lambda m: m["storage"].update(batch_tokens=0),
    "smaller batches": lambda m: m["storage"].update(batch_tokens=2),
    "no origin": lambda m: m.pop("origin"),
    "an origin in a list": lambda m: m.update(origin=[]),
    "a model's origin in a list": lambda m: m.update(origin={"model": []}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_says_something_else_is_refused(copied: Path, kind: str) -> None:
    edit_manifest(copied, MANIFESTS[kind])
    assert str(copied) in refusal(copied)


def test_a_recording_of_no_tokens_is_none(copied: Path) -> None:
    edit_manifest(copied, lambda m: m["prompts"].update(count=0, tokens=0))
    (copied / "index.jsonl").write_text("")
    assert "damaged" in refusal(copied)


def test_another_schema_says_so(copied: Path) -> None:
    edit_manifest(copied, lambda m: m.update(schema=2))
    assert refusal(copied) == (
        f"The recording '{copied}' has another schema than 1; another version of probekit wrote it."
    )


@pytest.mark.parametrize("vocabulary", ["{}", "[1]", "[null]", '"abc"', "[[]]"])
def test_a_vocabulary_that_is_none_is_damaged(copied: Path, vocabulary: str) -> None:
    (copied / "vocabulary.json").write_text(vocabulary)
    assert "vocabulary.json" in refusal(copied)


def test_a_vocabulary_that_is_too_short_names_tokens_by_their_number(copied: Path) -> None:
    (copied / "vocabulary.json").write_text("[]")
    assert Recording(copied).first_prompts(1) == [[f"<{index}>" for index in PROMPTS[0]]]


# --- the index -------------------------------------------------------------------------------------------------------

LINES: dict[str, dict[str, Any]] = {
    "a name that climbs out": {"shard": "../../etc/passwd"},
    "another shard's name": {"shard": "shard-00002.safetensors"},
    "an absolute name": {"shard": "/etc/passwd"},
    "a name that is a number": {"shard": 1},
    "no tokens": {"tokens": 0},
    "negative tokens": {"tokens": -5},
    "huge tokens": {"tokens": HUGE},
    "tokens beyond numbers": {"tokens": 10**40},
    "tokens in words": {"tokens": "5"},
    "a token more": {"tokens": 10_000},
    "negative prompts": {"prompts": -1},
    "prompts of none": {"prompts": None},
    "no hash": {"sha256": None},
    "another hash": {"sha256": "0" * 64},
}


@pytest.mark.parametrize("kind", LINES)
def test_a_line_of_the_index_that_does_not_fit_is_refused(copied: Path, kind: str) -> None:
    edit_line(copied, 1, **LINES[kind])
    assert str(copied) in refusal(copied)


def test_huge_figures_that_agree_with_each_other_allocate_nothing(copied: Path) -> None:
    rest = Recording(copied).tokens - Recording(copied).shards[1]["tokens"]
    edit_line(copied, 1, tokens=HUGE, prompts=HUGE)
    edit_manifest(copied, lambda m: m["prompts"].update(count=HUGE, tokens=HUGE + rest))
    sentence = refusal(copied)
    assert f"it is smaller than the {HUGE} rows that it should have" in sentence
    assert "shard-00001.safetensors" in sentence


@pytest.mark.parametrize("kind", ["twice", "swapped", "blank", "a line more"])
def test_lines_that_are_not_those_of_the_shards_in_order(copied: Path, kind: str) -> None:
    file = copied / "index.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    if kind == "twice":
        lines.insert(1, lines[1])
    elif kind == "swapped":
        lines[0], lines[1] = lines[1], lines[0]
    elif kind == "blank":
        lines.insert(1, "")
    else:
        extra = f"shard-{len(lines):05d}.safetensors"
        shutil.copy(copied / "shard-00000.safetensors", copied / extra)
        lines.append(json.dumps({**json.loads(lines[0]), "shard": extra}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert str(copied) in refusal(copied)


# --- shards ----------------------------------------------------------------------------------------------------------


def put(tensors: dict[str, torch.Tensor], name: str, place: int, value: int) -> None:
    tensors[name][place] = value


SHARDS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a site less": lambda t: t.pop("norm"),
    "no prompts": lambda t: t.pop("index/prompts"),
    "no batches": lambda t: t.pop("index/batches"),
    "a row less": lambda t: t.update(norm=t["norm"][:-1].clone()),
    "another width": lambda t: t.update(norm=t["norm"][:, :16].repeat(1, 3)),
    "another dtype": lambda t: t.update(norm=t["norm"].int()),
    "prompts that are no whole numbers": lambda t: t.update({"index/prompts": t["index/prompts"].double()}),
    "a negative prompt": lambda t: put(t, "index/prompts", 0, -1),
    "a prompt beyond the last": lambda t: put(t, "index/prompts", 0, len(PROMPTS)),
    "a huge prompt": lambda t: t.update({"index/prompts": torch.full_like(t["index/prompts"], 2**62)}),
    "a prompt of another shard": lambda t: t["index/prompts"].add_(1).remainder_(len(PROMPTS)),
    "a prompt in two pieces": lambda t: t.update({"index/prompts": t["index/prompts"].roll(1)}),
    "one prompt for all rows": lambda t: t["index/prompts"].fill_(0),
    "positions from another place": lambda t: t["index/positions"].add_(1),
    "huge positions": lambda t: t["index/positions"].fill_(2**62),
    "batches that do not rise": lambda t: put(t, "index/batches", 1, 0),
    "batches beyond the end": lambda t: put(t, "index/batches", -1, 10**12),
    "batches before the beginning": lambda t: put(t, "index/batches", 0, -4),
    "no batch": lambda t: t.update({"index/batches": torch.zeros(0, dtype=torch.long)}),
    "a table of batches": lambda t: t.update({"index/batches": t["index/batches"][None].clone()}),
    "all rows in one batch": lambda t: t.update({"index/batches": t["index/batches"][[0, -1]].clone()}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_that_does_not_fit_is_named(copied: Path, kind: str) -> None:
    edit_shard(copied, 1, SHARDS[kind])
    sentence = refusal(copied)
    assert "shard-0000" in sentence
    assert "damaged" in sentence


def seal(folder: Path) -> None:
    """Make the header of every shard say what the manifest says now."""
    manifest = json.loads((folder / "recording.json").read_text(encoding="utf-8"))
    for number, shard in enumerate(sorted(folder.glob("shard-*"))):
        save_file(load_file(shard), shard, shard_header(manifest, number))


def test_a_batch_that_padding_would_blow_up_is_not_made(copied: Path) -> None:
    """One long prompt and very many short ones in one batch: small on disk, and its square in memory."""
    rows, half = 20_000, 10_000
    tensors = {site: torch.zeros(rows, 32) for site in ("block.0", "block.2", "norm")}
    tensors |= {
        "index/input_ids": torch.zeros(rows, dtype=torch.long),
        "index/prompts": (torch.arange(rows) - half).clamp(min=0),
        "index/positions": torch.arange(rows).where(torch.arange(rows) <= half, 0),
        "index/batches": torch.tensor([0, rows]),
    }
    edit_shard(copied, 0, lambda shard: (shard.clear(), shard.update(tensors)))
    edit_line(copied, 0, tokens=rows, prompts=half)
    tokens = sum(line["tokens"] for line in Recording(copied, unfinished=True).shards)
    edit_manifest(copied, lambda m: m["prompts"].update(count=half, tokens=tokens))
    seal(copied)
    assert "its index is not that of prompts in batches, each prompt once" in refusal(copied)


def test_prompts_that_are_in_no_shard_are_counted(copied: Path) -> None:
    edit_manifest(copied, lambda m: m["prompts"].update(count=len(PROMPTS) + 2))
    seal(copied)
    assert f"2 of its {len(PROMPTS) + 2} prompts are not in its shards" in refusal(copied)


def test_a_shard_of_another_recording_is_refused(
    subject: probekit.Subject, copied: Path, tmp_path: Path, tiny_gpt2: Any
) -> None:
    others = {
        "of another model": record_ids(probekit.load(tiny_gpt2(seed=1)), tmp_path / "model"),
        "of other prompts": record_ids(subject, tmp_path / "prompts", [[*ids[:-1], 59] for ids in PROMPTS]),
    }
    name = "shard-00001.safetensors"
    for other in others.values():
        assert (other.path / name).stat().st_size == pytest.approx((copied / name).stat().st_size, abs=8)
        shutil.copy(other.path / name, copied / name)
        assert refusal(copied) == f"The shard '{copied / name}' is not that of this recording; put its own back."


def test_shards_that_changed_places_are_refused(copied: Path) -> None:
    one, other = copied / "shard-00001.safetensors", copied / "shard-00002.safetensors"
    edit_line(copied, 1, tokens=Recording(copied).shards[1]["tokens"])
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert "shard-0000" in refusal(copied)


def test_a_shard_without_a_header_of_its_own_is_refused(copied: Path) -> None:
    shard = copied / "shard-00000.safetensors"
    save_file(load_file(shard), shard)
    with pytest.raises(UsageError):
        next(Recording(copied).batches(["norm"]))


@pytest.mark.parametrize("header", [2**63, 2**40, 10**8, 0, 7])
def test_a_header_that_declares_a_huge_size_allocates_nothing(copied: Path, header: int) -> None:
    shard = copied / "shard-00001.safetensors"
    shard.write_bytes(header.to_bytes(8, "little") + shard.read_bytes()[8:])
    assert "damaged" in refusal(copied)


# --- anything --------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(document: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a value in a JSON document."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [before, *(place for key, value in inner for place in places(value, (*before, key)))]


def with_value(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    first, *rest = place
    changed = dict(document) if isinstance(document, dict) else dict(enumerate(document))
    changed[first] = with_value(changed[first], tuple(rest), value)
    return changed if isinstance(document, dict) else list(changed.values())


def survives(folder: Path) -> None:
    """Read to the end, or one sentence."""
    with contextlib.suppress(UsageError):
        read_all(folder)


@FUZZ
@given(st.data())
def test_any_value_anywhere_in_the_manifest(recorded: Recording, copied: Path, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(places(recorded.manifest)))
    changed = with_value(recorded.manifest, place, data.draw(VALUES))
    (copied / "recording.json").write_text(json.dumps(changed), encoding="utf-8")
    survives(copied)


@FUZZ
@given(st.data())
def test_any_value_anywhere_in_the_index(recorded: Recording, copied: Path, data: st.DataObject) -> None:
    lines: list[Any] = list(recorded.shards)
    place = data.draw(st.sampled_from(places(lines)[1:]))
    changed = with_value(lines, place, data.draw(VALUES))
    (copied / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed), encoding="utf-8")
    survives(copied)


@FUZZ
@given(st.data())
def test_any_bytes_anywhere(recorded: Recording, copied: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["recording.json", "index.jsonl", "vocabulary.json", "shard-00001.safetensors"]))
    whole = (recorded.path / name).read_bytes()
    start = data.draw(st.integers(0, len(whole)) | st.integers(0, 1500).map(lambda place: min(place, len(whole))))
    end = data.draw(st.integers(start, min(len(whole), start + 20)))
    (copied / name).write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:])
    try:
        survives(copied)
    finally:
        (copied / name).write_bytes(whole)


def test_storage_that_is_small_is_the_recordings_own() -> None:
    """What the tests above rely on: several batches in a shard, several prompts in a batch."""
    assert SMALL.shard_bytes > SMALL.batch_tokens * 3 * 32 * 4
