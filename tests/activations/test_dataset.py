"""The rows of a recording as a torch dataset: indexed as a tensor is, mapped rather than read, good for loaders."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import probekit
from probekit.activations import ActivationDataset, Recording, Storage
from probekit.errors import UsageError
from tests.activations.recordings import PROMPTS, record_ids

COLUMNS = {"input_id": "index/input_ids", "prompt": "index/prompts", "position": "index/positions"}


@pytest.fixture(scope="module")
def expected(recorded: Recording) -> dict[str, torch.Tensor]:
    """All rows, shard after shard, by plain safetensors."""
    shards = [load_file(path) for path in sorted(recorded.path.glob("shard-*"))]
    names = {**{site: site for site in recorded.sites}, **COLUMNS}
    return {name: torch.cat([shard[stored] for shard in shards]) for name, stored in names.items()}


def assert_rows(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rows: Any) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert torch.equal(found[name], values[rows]), name
        assert found[name].dtype == values.dtype


def test_a_number_gives_one_row(recorded: Recording, expected: dict[str, torch.Tensor]) -> None:
    dataset = recorded.dataset()
    assert len(dataset) == recorded.tokens == len(expected["prompt"])
    for number in [*range(0, len(dataset), 7), len(dataset) - 1, -1, -len(dataset)]:
        assert_rows(dataset[number], expected, number)
    assert dataset[0]["norm"].shape == (32,)
    assert dataset[0]["prompt"].shape == ()
    assert_rows(dataset[torch.tensor(5)], expected, 5)
    assert_rows(dataset[np.int64(5)], expected, 5)


SLICES = [slice(None), slice(3, 90), slice(90, 3), slice(None, None, -1), slice(-5, None), slice(100, 10, -7),
          slice(5, 5), slice(10**6, 10**7), slice(0, 10**9, 50), slice(4, 2, 1), slice(2, 4, -1)]  # fmt: skip


@pytest.mark.parametrize("rows", SLICES, ids=str)
def test_a_slice_is_a_lists(recorded: Recording, expected: dict[str, torch.Tensor], rows: slice) -> None:
    numbers = list(range(recorded.tokens))[rows]
    assert_rows(recorded.dataset()[rows], expected, numbers)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array], ids=lambda kind: kind.__name__)
def test_several_rows_come_in_the_order_asked_for(
    recorded: Recording, expected: dict[str, torch.Tensor], kind: Any
) -> None:
    draw = random.Random(0)
    numbers = [draw.randrange(-recorded.tokens, recorded.tokens) for _ in range(200)]
    assert_rows(recorded.dataset()[kind(numbers)], expected, numbers)
    assert_rows(recorded.dataset()[kind([])], expected, [])
    assert_rows(recorded.dataset()[kind([7, 7])], expected, [7, 7])


def test_some_sites_alone_may_be_asked_for(recorded: Recording) -> None:
    assert list(recorded.dataset("norm,block.-1")[0]) == ["norm", "block.2", *COLUMNS]
    assert list(recorded.dataset(["block.-1"])[0]) == ["block.2", *COLUMNS]
    with pytest.raises(UsageError, match=r"'block\.1' is not in the recording"):
        recorded.dataset("block.1")


def test_rows_say_of_which_prompt_and_position_they_are(recorded: Recording) -> None:
    dataset = recorded.dataset("norm")
    seen = set()
    for prompt, position, token in zip(
        *(dataset[:][name].tolist() for name in ("prompt", "position", "input_id")), strict=True
    ):
        assert PROMPTS[prompt][position] == token
        seen.add((prompt, position))
    assert len(seen) == len(dataset)


def test_a_number_beyond_the_end_is_an_index_error(recorded: Recording) -> None:
    dataset, size = recorded.dataset(), recorded.tokens
    for index in (size, -size - 1, [0, size], torch.tensor([-size - 1]), 10**15):
        with pytest.raises(IndexError, match=rf"has {size} rows"):
            dataset[index]


def test_what_is_no_number_is_a_type_error(recorded: Recording) -> None:
    dataset = recorded.dataset()
    mask = torch.zeros(len(dataset), dtype=torch.bool)
    wrong: Sequence[Any] = (
        mask,
        True,
        [True],
        1.5,
        [0.5],
        "norm",
        None,
        [[1, 2]],
        [[1], [2, 3]],
        torch.zeros(0, 2),
        {},
    )
    for index in wrong:
        with pytest.raises(TypeError, match="indexed by a number, a slice, or a list of numbers"):
            dataset[index]


def test_a_damaged_shard_is_a_sentence_when_it_is_read(copied: Path) -> None:
    recording = Recording(copied)
    dataset = recording.dataset()
    shard = copied / recording.shards[1]["shard"]
    shard.write_bytes(bytes(shard.stat().st_size))
    dataset[0]
    with pytest.raises(UsageError, match="is damaged"):
        dataset[recording.shards[0]["tokens"]]


@pytest.mark.parametrize(
    ("workers", "start"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)], ids=str
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loader_of_shuffled_batches_gives_every_row_once(
    recorded: Recording, expected: dict[str, torch.Tensor], workers: int, start: str | None
) -> None:
    dataset = recorded.dataset("norm")
    sampler: Any = BatchSampler(RandomSampler(dataset, generator=torch.Generator().manual_seed(0)), 50, False)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers, multiprocessing_context=start)
    batches = list(loader)
    assert [len(batch["norm"]) for batch in batches[:-1]] == [50] * (len(dataset) // 50)
    together = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert not torch.equal(together["prompt"], expected["prompt"]), "it is shuffled"
    order = torch.argsort(together["prompt"] * 1000 + together["position"])
    straight = torch.argsort(expected["prompt"] * 1000 + expected["position"])
    for name, values in together.items():
        assert torch.equal(values[order], expected[name][straight]), name


def test_a_plain_loader_collates_single_rows(recorded: Recording, expected: dict[str, torch.Tensor]) -> None:
    batch = next(iter(DataLoader(recorded.dataset("norm"), batch_size=8)))
    assert torch.equal(batch["norm"], expected["norm"][:8])
    assert torch.equal(batch["input_id"], expected["input_id"][:8])


def test_it_pickles_without_what_is_mapped(recorded: Recording, expected: dict[str, torch.Tensor]) -> None:
    dataset = recorded.dataset()
    bare = len(pickle.dumps(dataset))
    dataset[:]
    again: ActivationDataset = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) == bare, "no activations are sent to a worker"
    assert_rows(again[3:9], expected, slice(3, 9))


def test_writing_into_rows_changes_neither_the_dataset_nor_the_disk(copied: Path) -> None:
    dataset = Recording(copied).dataset("norm")
    kept = dataset[:]["norm"]
    for index in (3, slice(0, 9), [4, 5]):
        dataset[index]["norm"].zero_()
    assert torch.equal(dataset[:]["norm"], kept)


MEMORY = """
import sys
from pathlib import Path
from probekit.activations import Recording

def resident():
    "KiB of memory that is the process's own, without what is mapped from files."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "RssAnon" in line)

recording = Recording(sys.argv[1])
small = recording.dataset("block.0")
small[0]
before = resident()
dataset = recording.dataset()
for number in range(0, len(dataset), 9):
    dataset[number]
print(recording.bytes // 1024, resident() - before, len(list(Path("/proc/self/fd").iterdir())))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
def test_shards_are_mapped_not_read(tiny_gpt2: Any, tmp_path: Path, probekit_process: Any) -> None:
    subject = probekit.load(tiny_gpt2(n_embd=512, n_layer=2))
    path = tmp_path / "r"
    record_ids(subject, path, [[1 + index % 50] * 20 for index in range(600)], "block.0,block.1,logits", Storage())
    ended = probekit_process(path, code=MEMORY)
    assert ended.code == 0, ended.err
    size, grown, files = map(int, ended.out.split())
    assert size > 50_000
    assert grown < size / 8
    assert files < 40, "a shard that is mapped keeps no file open"
