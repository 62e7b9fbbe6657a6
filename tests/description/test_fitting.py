"""How many rows fit: beside what is free, beside limits, and beside what a step really takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import probekit
from probekit.description import fitting
from probekit.description.control_groups import left_by_groups
from probekit.description.memory import weights_on
from probekit.testing import tiny_subject
from probekit_plugins.batches import Batches

MIB = 2**20


@pytest.fixture
def subject() -> probekit.Subject:
    return tiny_subject()


def give(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(fitting, "free", lambda device: free)


def one_row(subject: probekit.Subject, asked: list[int]) -> Callable[[], torch.Tensor]:
    layer_map, embeddings = subject.layer_map("block.1"), subject.embed(torch.tensor([[1, 2, 3, 4]]))

    def row() -> torch.Tensor:
        asked.append(1)
        return layer_map(embeddings.clone().requires_grad_()).sum()

    return row


def test_where_there_is_plenty_nothing_is_measured(subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    give(monkeypatch, 2**40)
    assert probekit.rows_that_fit(subject, "block.1", 4, 1000, one_row(subject, asked)) == 1000
    assert asked == []


def test_it_is_a_count_that_halving_would_have_come_to_and_grows_with_what_is_free(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [1000, 500, 250, 125, 63, 32, 16, 8, 4, 2, 1]
    found = []
    for free in [0, *(2**power for power in range(12, 33))]:
        give(monkeypatch, free)
        found.append(probekit.rows_that_fit(subject, "block.1", 4, 1000, one_row(subject, [])))
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, 1000)
    assert set(found) <= set(halves)
    assert len(set(found)) > 6


def test_what_a_row_holds_beside_its_graph_and_what_stays_of_it_count_too(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 64 * MIB)
    assert probekit.rows_that_fit(subject, "block.1", 4, 256) == 256
    assert probekit.rows_that_fit(subject, "block.1", 4, 256, beside=MIB) == 16  # 31.5 with the margin
    assert probekit.rows_that_fit(subject, "block.1", 4, 256, after=MIB // 4) == 1  # no size of batch helps


def test_a_limit_of_a_device_counts_beside_its_weights(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 2**40)
    held = weights_on(subject, torch.device("cpu"))
    assert held == sum(each.nbytes for each in {id(each): each for each in subject.model.parameters()}.values())
    subject.max_memory = {"cpu": held + 8 * MIB}
    assert probekit.rows_that_fit(subject, "block.1", 4, 64, beside=MIB) == 2
    subject.max_memory = {"cpu": held // 2, "disk": 5}
    assert probekit.rows_that_fit(subject, "block.1", 4, 64) == 1


def test_a_row_that_does_not_fit_is_left_to_the_batch_itself(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, MIB)

    def row() -> torch.Tensor:
        raise torch.OutOfMemoryError

    def wrong() -> torch.Tensor:
        raise RuntimeError("a bug")

    assert probekit.rows_that_fit(subject, "block.1", 4, 512, row) == 1
    with pytest.raises(RuntimeError, match="a bug"):
        probekit.rows_that_fit(subject, "block.1", 4, 512, wrong)


def test_sites_within_blocks_and_behind_them_are_estimated_too(
    subject: probekit.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 4 * MIB)
    for site in ("embedding", "norm", "logits", "block.-1"):
        assert 1 <= probekit.rows_that_fit(subject, site, 4, 4096) < 4096


@pytest.mark.parametrize(
    ("lines", "folder", "files"),
    [
        ("0::/job/step\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/job/step\n3:cpu:/\n",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limits_of_control_groups_count_on_every_way_up(
    lines: str, folder: str, files: tuple[str, str, str], tmp_path: Path
) -> None:
    root = tmp_path / "sys/fs/cgroup" / folder
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines, encoding="utf-8")
    assert left_by_groups(tmp_path) == []

    def group(path: str, most: str, used: int, inactive: int) -> None:
        (root / path).mkdir(parents=True, exist_ok=True)
        for name, content in ((files[0], most), (files[1], used), ("memory.stat", f"other 7\n{files[2]} {inactive}")):
            (root / path / name).write_text(f"{content}\n", encoding="utf-8")

    group("job/step", "max", 5, 0)
    group("job", "1000", 600, 100)
    group("", "90", 600, 100)  # as where a container sees its own group as the root
    assert left_by_groups(tmp_path) == [500, 0]
    (root / "job" / files[1]).write_text("damaged", encoding="utf-8")
    assert left_by_groups(tmp_path) == [0]
    assert left_by_groups(tmp_path / "nowhere") == []


LIMITED = """
import resource, sys
from pathlib import Path
import probekit
from probekit.testing import prompts
from probekit_plugins.gradient_inverter import GradientInverter, GradientInverterOptions

class Says:
    def progress(self, *_): pass
    def message(self, text): print(text)

subject = probekit.load(sys.argv[1])
def run(**options):
    given = {"steps": 2, "sites": "block.-1", "next_token": False, "record_every": 2, **options}
    analysis = GradientInverter(GradientInverterOptions(**given), probekit.Context(listener=Says()))
    analysis.run(subject, prompts(subject, "the house and the river " * 3))
run(restarts=1)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (300 << 20),) * 2)
run(restarts=512)
print("all at once")
run(restarts=512, rows_at_once=512)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system does not limit a process's memory")
def test_under_a_limit_of_the_process_a_run_chooses_what_fits_before_it_fails(
    tiny_gpt2: Callable[..., Path],
) -> None:
    folder = tiny_gpt2(n_embd=96, n_head=4, n_layer=4, n_positions=64)
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, folder], capture_output=True, text=True, timeout=100, check=False
    )
    chosen, _, at_once = ended.stdout.partition("all at once")
    assert "512 rows may not fit into memory at block.3" in chosen, ended.stderr
    assert "Out of memory" not in chosen
    assert "Out of memory at block.3" in at_once


def test_an_estimate_that_is_wrong_is_split_again_and_a_row_that_never_fits_says_so() -> None:
    tried: list[int] = []

    def compute(rows: slice) -> torch.Tensor:
        tried.append(rows.stop - rows.start)
        if tried[-1] > 2:
            raise torch.OutOfMemoryError
        return torch.arange(rows.start, rows.stop)

    batches = Batches(probekit.Context())
    most = batches.estimated(16, lambda count: count // 2, "here")
    assert torch.equal(batches.joined(16, compute, "here", most), torch.arange(16))
    assert tried == [8, 4, *[2] * 8]
    assert batches.notes() == ["Memory ran out, so that in the end 2 rows were computed at once."]


@pytest.mark.parametrize("compiles", [False, True])
def test_a_row_is_measured_where_a_map_goes_back_through_its_graph(
    compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does when it records its route, or compiles."""
    monkeypatch.setattr(torch, "compile", lambda block, **_settings: block)
    give(monkeypatch, 2**20)
    subject = probekit.Subject(tiny_subject().model, compiled=compiles)
    layer_map, embeddings = subject.layer_map("block.1", repeated=True), subject.embed(torch.tensor([[1, 2, 3, 4]]))

    def row() -> torch.Tensor:
        layer_map(embeddings.clone().requires_grad_())
        return layer_map(embeddings.clone().requires_grad_()).sum()

    assert 1 <= probekit.rows_that_fit(subject, "block.1", 4, 1000, row) < 1000
