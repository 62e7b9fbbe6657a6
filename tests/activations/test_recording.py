"""Recordings: what plain safetensors reads is what the model gives each prompt alone; gone on with, or refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import probekit
from probekit.activations import LiveActivations, Recording, Storage
from probekit.errors import AnalysisError, UsageError
from tests.activations.recordings import PROMPTS, SITES, SMALL, Stopped, contents, made_up, record_ids, stop_after

Shapes = Callable[[], list[tuple[int, ...]]]
NAMES = ["block.0", "block.2", "norm"]


def rows_by_prompt(folder: Path, site: str) -> dict[int, torch.Tensor]:
    """The rows of each prompt in the order of their positions, by plain safetensors; each row once."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    for shard in sorted(folder.glob("shard-*.safetensors")):
        tensors = load_file(shard)
        index = zip(tensors["index/prompts"].tolist(), tensors["index/positions"].tolist(), strict=True)
        for place, row in zip(index, tensors[site], strict=True):
            assert place not in found
            found[place] = row
    prompts: dict[int, list[torch.Tensor]] = {}
    for prompt, position in sorted(found):
        assert position == len(prompts.setdefault(prompt, []))
        prompts[prompt].append(found[prompt, position])
    return {prompt: torch.stack(rows) for prompt, rows in prompts.items()}


# --- what is on disk -------------------------------------------------------------------------------------------------


def test_what_plain_safetensors_reads_is_what_each_prompt_has_alone(
    subject: probekit.Subject, recorded: Recording
) -> None:
    alone = [subject.capture(torch.tensor([ids]), NAMES) for ids in PROMPTS]
    for site in NAMES:
        found = rows_by_prompt(recorded.path, site)
        assert sorted(found) == list(range(len(PROMPTS)))
        for number, rows in found.items():
            torch.testing.assert_close(rows, alone[number][site][0], rtol=1e-5, atol=1e-6)
    ids = rows_by_prompt(recorded.path, "index/input_ids")
    assert [ids[number].tolist() for number in range(len(PROMPTS))] == PROMPTS


def test_each_shard_says_of_which_model_and_recording_it_is(subject: probekit.Subject, recorded: Recording) -> None:
    shards = sorted(recorded.path.glob("shard-*.safetensors"))
    assert len(shards) == len(recorded.shards) > 3
    for number, path in enumerate(shards):
        with safe_open(path, "pt") as file:
            known = json.loads(file.metadata()["probekit"])
            assert set(file.keys()) == {
                *NAMES,
                *(f"index/{name}" for name in ("batches", "input_ids", "positions", "prompts")),
            }
        assert known["model"]["weights_sha256"] == subject.facts["weights_sha256"]
        assert known["shard"] == number
        assert known["sites"] == {site: {"shape": [32], "dtype": "float32"} for site in NAMES}
        assert known["prompts"] == recorded.manifest["prompts"]


def test_the_index_says_how_much_is_in_each_shard_and_its_hash(recorded: Recording) -> None:
    lines = [json.loads(line) for line in (recorded.path / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == recorded.shards
    for line in lines:
        path = recorded.path / line["shard"]
        prompts = load_file(path)["index/prompts"]
        assert line["tokens"] == len(prompts)
        assert line["prompts"] == len(prompts.unique())
        assert line["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(line["tokens"] for line in lines) == recorded.tokens == sum(map(len, PROMPTS))
    assert sum(line["prompts"] for line in lines) == recorded.prompt_count == len(PROMPTS)


def test_shards_are_bounded_and_filled(recorded: Recording) -> None:
    row = 3 * 32 * 4
    sizes = [line["tokens"] * row for line in recorded.shards]
    assert max(sizes) <= SMALL.shard_bytes
    assert min(sizes[:-1]) > SMALL.shard_bytes - SMALL.batch_tokens * row
    assert recorded.bytes == sum(path.stat().st_size for path in recorded.path.glob("shard-*"))


@pytest.mark.parametrize("bound", [1, 128 * 4, 128 * 20])
def test_a_shard_is_larger_than_its_bound_only_for_one_prompt(
    subject: probekit.Subject, tmp_path: Path, bound: int
) -> None:
    recording = record_ids(subject, tmp_path / "r", PROMPTS[:15], "block.1", Storage(shard_bytes=bound))
    for line in recording.shards:
        assert line["tokens"] * 128 <= bound or line["prompts"] == 1
    assert recording.complete


def test_activations_wider_than_fp32_fill_no_larger_shards(tiny_gpt2: Any, tmp_path: Path) -> None:
    subject = probekit.load(tiny_gpt2(), dtype="float64")
    recording = record_ids(subject, tmp_path / "r", PROMPTS, "block.0", Storage(shard_bytes=256 * 30))
    assert recording.dtype("block.0") == torch.float64
    assert max(line["tokens"] for line in recording.shards) <= 30


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_activations_are_kept_in_the_dtype_asked_for(
    subject: probekit.Subject, recorded: Recording, tmp_path: Path, dtype: str
) -> None:
    recording = record_ids(subject, tmp_path / "r", storage=Storage(dtype, SMALL.shard_bytes, SMALL.batch_tokens))
    kept, full = (rows_by_prompt(folder, "block.2") for folder in (recording.path, recorded.path))
    wanted = getattr(torch, dtype)
    assert recording.dtype("block.2") == wanted
    for number, rows in kept.items():
        assert rows.dtype == wanted
        assert torch.equal(rows, full[number].to(wanted)), "rounded once, from what was computed"
    batch = next(recording.batches(["block.2"]))
    assert batch["block.2"].dtype == wanted


def test_a_model_in_half_precision_is_recorded_in_its_own(tiny_gpt2: Any, tmp_path: Path) -> None:
    subject = probekit.load(tiny_gpt2(), dtype="bfloat16")
    recording = record_ids(subject, tmp_path / "r", PROMPTS[:5])
    assert {recording.dtype(site) for site in NAMES} == {torch.bfloat16}


def test_sites_of_other_shapes_are_kept_in_theirs(subject: probekit.Subject, tmp_path: Path) -> None:
    sites = "transformer.h.1.mlp.c_fc,embedding,transformer.wpe,logits"
    recording = record_ids(subject, tmp_path / "r", PROMPTS[:6], sites)
    assert [list(recording.shape(site)) for site in recording.sites] == [[128], [32], [32], [subject.vocabulary]]
    for site in recording.sites:
        for number, rows in rows_by_prompt(recording.path, site).items():
            alone = subject.capture(torch.tensor([PROMPTS[number]]), [site])[site][0]
            torch.testing.assert_close(rows, alone, rtol=1e-5, atol=1e-6)


# --- read back as batches --------------------------------------------------------------------------------------------


def test_batches_are_those_of_the_live_model_bit_for_bit(subject: probekit.Subject, recorded: Recording) -> None:
    live = LiveActivations(subject, lambda: PROMPTS, len(PROMPTS), SMALL.batch_tokens, SMALL.shard_bytes)
    sites = ["norm", "block.0"]
    for one, other in zip(recorded.batches(sites), live.batches(sites), strict=True):
        assert one.sites == other.sites == sites
        for site in sites:
            assert torch.equal(one[site], other[site])
            assert torch.equal(one.rows(site), other.rows(site))
        for name in ("input_ids", "mask", "prompts", "positions", "row_prompts", "row_ids"):
            found, expected = getattr(one, name), getattr(other, name)
            assert torch.equal(found, expected), name
            assert found.dtype == expected.dtype, name
        assert one.tokens() == other.tokens()


def test_what_is_read_may_be_written_into_without_touching_the_disk(copied: Path) -> None:
    recording, before = Recording(copied), contents(copied)
    for batch in recording.batches(["block.0"]):
        batch["block.0"].zero_()
    assert contents(copied) == before
    assert any(batch["block.0"].any() for batch in recording.batches(["block.0"]))


def test_expressions_stand_for_what_was_recorded(recorded: Recording) -> None:
    assert recorded.expand_sites("blocks") == ["block.0", "block.2"]
    assert recorded.expand_sites("block.-1,norm,block.0:1") == ["block.2", "norm", "block.0"]
    assert recorded.expand_sites("block.0:3:2") == ["block.0", "block.2"]
    for missing in ("block.1", "block.0:2", "logits", "block.-2", "block.7", "", "block.-9"):
        with pytest.raises(UsageError) as refused:
            recorded.expand_sites(missing)
        assert "block.0, block.2, norm" in str(refused.value) or missing == "block.7"
    with pytest.raises(UsageError, match="is not in the recording"):
        next(recorded.batches(["block.1"]))


def test_the_first_prompts_are_named_in_the_order_in_which_they_were_given(
    subject: probekit.Subject, recorded: Recording
) -> None:
    assert recorded.first_prompts(5) == [subject.tokens(ids) for ids in PROMPTS[:5]]
    assert len(recorded.first_prompts(1000)) == len(PROMPTS)


def test_the_texts_of_tokens_need_no_model(subject: probekit.Subject, recorded: Recording) -> None:
    ids = list(range(subject.vocabulary))
    assert recorded.token_texts(ids) == subject.tokens(ids)
    assert recorded.token_texts([-1, 10**12]) == ["<-1>", f"<{10**12}>"]


def test_a_sound_recording_is_verified_and_any_flipped_byte_is_found(copied: Path) -> None:
    recording = Recording(copied)
    recording.verify()
    shard = copied / recording.shards[-2]["shard"]
    whole = shard.read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UsageError) as refused:
            recording.verify()
        assert str(refused.value) == f"The shard '{shard}' is not what was recorded: its hash is not the index's."
    shard.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        recording.verify()


# --- figures that cannot be kept -------------------------------------------------------------------------------------


def test_activations_too_large_for_half_precision_end_with_what_to_do(tiny_gpt2: Any, tmp_path: Path) -> None:
    subject = probekit.load(tiny_gpt2())
    with torch.no_grad():
        subject.model.get_parameter("transformer.h.0.mlp.c_proj.bias")[3] = 1e5
    with pytest.raises(AnalysisError) as ended:
        record_ids(subject, tmp_path / "r", storage=Storage("float16"))
    assert str(ended.value).startswith("The activation at 'block.0' reaches 1e+05, which is too large for float16; ")
    assert "bfloat16 or float32 (--store)" in str(ended.value)
    assert sorted(contents(tmp_path / "r")) == ["index.jsonl", "recording.json", "vocabulary.json"]
    assert record_ids(subject, tmp_path / "other", storage=Storage("bfloat16")).complete


def test_weights_that_are_not_finite_end_with_their_name(tiny_gpt2: Any, tmp_path: Path) -> None:
    subject = probekit.load(tiny_gpt2())
    weight = subject.model.get_parameter("transformer.h.2.ln_1.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0] = float("nan")
    with pytest.raises(
        AnalysisError, match=r"'block\.2' is NaN or infinite, because the weight transformer\.h\.2\.ln_1"
    ):
        record_ids(subject, tmp_path / "r")
    assert sorted(contents(tmp_path / "r")) == ["index.jsonl", "recording.json", "vocabulary.json"]
    with torch.no_grad():
        weight.copy_(kept)
    assert record_ids(subject, tmp_path / "r").complete, "what is left is a beginning that can be gone on with"


def test_large_figures_that_a_sum_cannot_hold_are_kept_as_they_are(tiny_gpt2: Any, tmp_path: Path) -> None:
    subject = probekit.load(tiny_gpt2(), dtype="float64")
    with subject.edit("block.0", lambda activation: torch.full_like(activation, 1e308)):
        recording = record_ids(subject, tmp_path / "r", PROMPTS[:5], "block.0")
    assert (next(recording.batches(["block.0"])).rows("block.0") == 1e308).all()


@pytest.mark.parametrize("kind", ["file system", "safetensors"])
def test_a_disk_that_is_full_is_a_sentence_and_the_call_goes_on_when_there_is_room(
    subject: probekit.Subject, recorded: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from probekit.activations import writing

    saved = []

    def full(tensors: Any, place: Path, metadata: Any) -> None:
        saved.append(place)
        if len(saved) == 3:
            place.write_bytes(b"half of it")
            raise (
                OSError(28, "No space left on device") if kind == "file system" else SafetensorError("I/O error: full")
            )
        save_file(tensors, place, metadata)

    save_file = writing.save_file
    with monkeypatch.context() as patch:
        patch.setattr(writing, "save_file", full)
        with pytest.raises(probekit.StorageError) as ended:
            record_ids(subject, tmp_path / "r")
    reason = "the disk is full" if kind == "file system" else "I/O error: full"
    assert str(ended.value) == (
        f"The folder '{tmp_path / 'r'}' cannot be written: {reason}; what was written before is whole. With that "
        "mended, the same command goes on with it."
    )
    assert len(Recording(tmp_path / "r", unfinished=True).shards) == 2
    record_ids(subject, tmp_path / "r")
    assert contents(tmp_path / "r") == contents(recorded.path)


# --- gone on with ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 2, 4])
def test_an_unfinished_recording_is_refused_and_the_same_call_goes_on(
    subject: probekit.Subject, recorded: Recording, tmp_path: Path, passes: Shapes, done: int
) -> None:
    path = tmp_path / "r"
    with pytest.raises(Stopped):
        record_ids(subject, path, progress=stop_after(done))
    with pytest.raises(UsageError) as refused:
        Recording(path)
    there = sum(line["tokens"] for line in recorded.shards[:done])
    assert str(refused.value) == (
        f"The recording '{path}' has {there} of {recorded.tokens} tokens; go on with it by the `probekit record` "
        "command that began it."
    )
    kept = {name: content for name, content in contents(path).items() if name.startswith("shard")}
    assert len(kept) == done
    passes()
    shown: list[tuple[int, int]] = []
    assert record_ids(subject, path, progress=lambda *step: shown.append(step)).complete
    starts = [load_file(recorded.path / line["shard"])["index/batches"] for line in recorded.shards[done:]]
    assert len(passes()) == sum(len(start) - 1 for start in starts), "finished shards are not computed again"
    assert shown[-1] == (recorded.tokens, recorded.tokens)
    assert contents(path) == contents(recorded.path)


def test_a_finished_recording_is_returned_without_a_forward_pass_or_a_touch(
    subject: probekit.Subject, copied: Path, passes: Shapes
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    passes()
    recording = record_ids(subject, copied)
    assert passes() == []
    assert recording.complete
    assert recording.tokens == sum(map(len, PROMPTS))
    assert {path: path.stat().st_mtime_ns for path in copied.iterdir()} == before


def test_a_shard_that_was_removed_is_computed_again(
    subject: probekit.Subject, recorded: Recording, copied: Path
) -> None:
    (copied / recorded.shards[2]["shard"]).unlink()
    with pytest.raises(UsageError, match="go on with it"):
        Recording(copied)
    record_ids(subject, copied)
    assert contents(copied) == contents(recorded.path)


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "sites": ({"sites": "block.0"}, "another sites: ['block.0', 'block.2', 'norm'] then, ['block.0'] now"),
    "order of sites": ({"sites": "norm,block.0,block.2"}, "another sites: "),
    "fewer prompts": ({"prompts": PROMPTS[:-1]}, "another prompts.count: 40 then, 39 now (3 differences in all)"),
    "order of prompts": ({"prompts": PROMPTS[::-1]}, "another prompts.sha256: "),
    "one token": ({"prompts": [*PROMPTS[:-1], [*PROMPTS[-1][:-1], 59]]}, "another prompts.sha256: "),
    "dtype": ({"storage": Storage("bfloat16", 20_000, 24)}, "another storage.dtype: 'auto' then, 'bfloat16' now"),
    "shards": ({"storage": Storage("auto", 20_001, 24)}, "another storage.shard_bytes: 20000 then, 20001 now"),
    "batches": ({"storage": Storage("auto", 20_000, 25)}, "another storage.batch_tokens: 24 then, 25 now"),
    "versions": ({"versions": {"torch": "1.0"}}, "another origin: {} then, None now"),
}


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("kind", DIFFERENT)
def test_another_call_is_refused_with_what_differs_and_changes_nothing(
    subject: probekit.Subject, copied: Path, passes: Shapes, kind: str, finished: bool
) -> None:
    if not finished:
        index = copied / "index.jsonl"
        index.write_text("".join(index.read_text(encoding="utf-8").splitlines(keepends=True)[:2]) + '{"torn', "utf-8")
    before = contents(copied)
    changed, part = DIFFERENT[kind]
    passes()
    with pytest.raises(UsageError) as refused:
        record_ids(subject, copied, **{"prompts": PROMPTS, "sites": SITES, "storage": SMALL, **changed})
    assert str(refused.value).startswith(f"The recording '{copied}' was begun with {part}")
    assert "go on with it as it was begun, or choose another output." in str(refused.value)
    assert contents(copied) == before
    assert passes() == []


def test_another_model_is_refused(tiny_gpt2: Any, copied: Path) -> None:
    before = contents(copied)
    for model, part in ((tiny_gpt2(seed=1), "model.weights_sha256"), (tiny_gpt2(n_layer=4), "model.")):
        with pytest.raises(UsageError, match=rf"was begun with another {part}"):
            record_ids(probekit.load(model), copied, sites="block.0,block.2,norm")
    assert contents(copied) == before


def test_a_folder_that_holds_something_else_is_left_as_it_is(
    subject: probekit.Subject, tmp_path: Path, passes: Shapes
) -> None:
    passes()
    for name in ("notes.txt", "notes.tmp", ".hidden.tmp", "index.jsonl", "shard-00000.safetensors"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UsageError, match="exists and is not empty; choose another, or remove it"):
            record_ids(subject, folder)
        assert contents(folder) == {name: b"mine"}
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(UsageError, match=r"is not a directory that can be made"):
            record_ids(subject, path)
    assert file.read_text() == "mine"
    assert [shape for shape in passes() if shape[0] > 1] == []


def test_an_empty_folder_and_one_that_is_not_there_are_both_taken(
    subject: probekit.Subject, recorded: Recording, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        record_ids(subject, path)
        assert contents(path) == contents(recorded.path)


def test_what_a_killed_call_left_before_its_manifest_is_no_hindrance(
    subject: probekit.Subject, recorded: Recording, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    path.mkdir()
    (path / ".vocabulary.json.4711.tmp").write_text("[half")
    (path / "vocabulary.json").write_text("[]")
    (path / ".recording.json.4711.tmp").write_text("{")
    record_ids(subject, path)
    assert contents(path) == contents(recorded.path)


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ([], "number 40 has no tokens"),
        ([1, 10**9], "1000000000 is outside"),
        ([-1], "-1 is outside"),
        ([1] * 33, "number 40 has 33"),
    ],
    ids=["empty", "unknown", "negative", "long"],
)
def test_a_bad_prompt_at_the_end_is_found_before_anything_is_computed(
    subject: probekit.Subject, tmp_path: Path, passes: Shapes, bad: list[int], part: str
) -> None:
    passes()
    with pytest.raises(UsageError, match=part):
        record_ids(subject, tmp_path / "deep" / "r", [*PROMPTS, bad])
    assert passes() == []
    assert not (tmp_path / "deep").exists()


def test_no_prompts_are_no_recording(subject: probekit.Subject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There are no prompts to record"):
        record_ids(subject, tmp_path / "r", [])
    assert not (tmp_path / "r").exists()


def test_prompts_that_change_while_they_are_recorded_are_noticed(
    subject: probekit.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.activations.writing.TOKENS_KEPT", 0)  # read again, as many prompts are
    calls = 0

    def prompts() -> Iterator[list[int]]:
        nonlocal calls
        calls += 1
        yield from PROMPTS if calls < 3 else [*PROMPTS[:-1], [5, 5]]

    with pytest.raises(UsageError, match="The prompts have changed while they were recorded"):
        probekit.activations.write(subject, prompts, "block.0", tmp_path / "r", storage=SMALL)
    with pytest.raises(UsageError, match="go on with it"):
        Recording(tmp_path / "r")


def test_a_site_without_a_vector_for_each_token_is_refused_before_there_is_a_folder(
    subject: probekit.Subject, tmp_path: Path
) -> None:
    with subject.edit("transformer.h.1.mlp", lambda activation: activation), pytest.raises(UsageError) as refused:
        record_ids(subject, tmp_path / "r", sites="transformer.h.9")
    assert "There is no site 'transformer.h.9'" in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_a_site_whose_width_goes_by_the_prompt_is_a_sentence(
    subject: probekit.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention weights, [batch, sequence, heads, sequence], as some modules return them."""
    capture = subject.capture

    def wide(ids: torch.Tensor, *given: Any) -> Any:
        return {site: found.repeat(1, 1, ids.shape[1]) for site, found in capture(ids, *given).items()}

    monkeypatch.setattr(subject, "capture", wide)
    with pytest.raises(UsageError) as refused:
        record_ids(subject, tmp_path / "r", sites="block.0")
    assert "choose one whose width does not depend on the prompt" in str(refused.value)


@pytest.mark.parametrize("kind", ["damaged manifest", "damaged index"])
def test_a_damaged_recording_is_not_gone_on_with(subject: probekit.Subject, copied: Path, kind: str) -> None:
    file = copied / ("recording.json" if kind == "damaged manifest" else "index.jsonl")
    file.write_text("{\n", encoding="utf-8")
    before = contents(copied)
    with pytest.raises(UsageError, match="is damaged"):
        record_ids(subject, copied)
    assert contents(copied) == before


def test_many_prompts_are_recorded_window_by_window(subject: probekit.Subject, tmp_path: Path) -> None:
    prompts = made_up(2500, longest=4)
    recording = record_ids(subject, tmp_path / "r", prompts, "block.0", Storage(shard_bytes=100_000))
    found = rows_by_prompt(recording.path, "index/input_ids")
    assert [found[number].tolist() for number in range(2500)] == prompts
    shutil.rmtree(recording.path)
