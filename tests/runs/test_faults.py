"""A disk that is full, a permission that is lost, a folder that is removed: one sentence, and nothing is corrupted.

Every write of every writer fails once, in order; what was written before is whole, and can be gone on with.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import probekit
from probekit.errors import ProbekitError, StorageError, UsageError
from probekit.plugins import Plugins
from probekit.runs import execute, resolve, resume
from probekit.runs.recording import record
from probekit.runs.studies import study
from probekit.runs.verify import verify
from tests.faults import FORBIDDEN, FULL, READ_ONLY, REMOVED, Disk
from tests.runs.folders import assert_same

if TYPE_CHECKING:
    from tests.conftest import Ended

PLACE = Path("run")  # relative, so that no two runs differ in their paths
HOW = {"full": FULL, "forbidden": FORBIDDEN, "read-only": READ_ONLY}


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> str:
    return str(tiny_gpt2())


def begin(model: str) -> probekit.Run:
    """A run of an analysis with loops, and one that shares a pass; its state is saved at every step."""
    values: dict[str, Any] = {
        "model": {"name": model},
        "plugins": ["gradient-inverter", "activation-statistics"],
        "prompts": ["The sky"],
        "options": {
            "gradient-inverter": {"steps": 2, "restarts": 1, "sites": "block.0", "record_every": 2},
            "activation-statistics": {"sites": "block.0", "skip_first": 0},
        },
    }
    plugins = Plugins()
    return execute(resolve([("test", values)], plugins), plugins, PLACE, None, (), 0.0)


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An uninterrupted run, and how often it writes."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Disk(folder)() as disk:
            begin(model)
    assert disk.writes > 50
    return folder / PLACE, disk.writes


def fails(model: str, whole: tuple[Path, int], number: int, how: int, folder: Path) -> None:
    """The n-th write fails: a sentence; then it works again, and the run ends as if nothing had been."""
    reference, writes = whole
    assert number <= writes
    with Disk(folder, number, how)() as disk, pytest.raises(ProbekitError) as ended:
        begin(model)
    assert disk.failed
    sentence = str(ended.value)
    assert "cannot be written" in sentence or "was removed" in sentence, sentence
    assert isinstance(ended.value, UsageError if "output directory" in sentence else StorageError)
    if how == REMOVED:
        assert not (folder / PLACE / "run.json").exists(), "no half of a run is made anew"
        return
    if not (folder / PLACE / "run.json").exists():
        assert list(folder.iterdir()) == [], "a run that could not begin leaves nothing"
        begin(model)
    else:
        assert f"probekit run --resume {PLACE}" in sentence or "output directory" in sentence, sentence
        assert "not over" in verify(PLACE).problems[0]
        resume(PLACE, Plugins())
    assert_same(folder / PLACE, reference)


# The first, some in between that are each of another kind, and the last.
@pytest.mark.parametrize("part", [0.0, 0.15, 0.4, 0.6, 0.8, 0.93, 1.0])
def test_a_write_that_fails_loses_nothing(
    part: float, model: str, whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = list(HOW.values())[int(part * 100) % len(HOW)]
    fails(model, whole, 1 + round(part * (whole[1] - 1)), how, tmp_path)


@pytest.mark.parametrize("part", [0.3, 0.7, 1.0])
def test_a_folder_that_is_removed_is_not_made_anew(
    part: float, model: str, whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(model, whole, round(part * whole[1]), REMOVED, tmp_path)


@pytest.mark.slow
def test_every_write_fails_once_in_every_way(
    model: str, whole: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, whole[1] + 1):
        for name, how in {**HOW, "removed": REMOVED}.items():
            if how == REMOVED and number < 20:
                continue  # the run has no folder of its own yet
            folder = tmp_path / f"{number}-{name}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            fails(model, whole, number, how, folder)
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(folder)


# --- other writers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(whole: tuple[Path, int], tmp_path: Path) -> Path:
    return shutil.copytree(whole[0], tmp_path / "runs" / "run")


def test_pages_and_figures_that_cannot_be_written_leave_what_was_there(
    run: Path, tmp_path: Path, probekit_cli: Callable[..., Ended]
) -> None:
    other = shutil.copytree(run, run.with_name("other"))
    commands = {
        "report": ["report", str(run)],
        "figures": ["report", str(run), "--figures", str(tmp_path / "figures"), "--format", "csv"],
        "compare": ["compare", str(run), str(other), "--output", str(tmp_path / "compared.html")],
        "runs": ["runs", str(run.parent), "--output", str(run.parent / "index.html")],
        "runs, summary": ["runs", str(run.parent), "--summary", str(tmp_path / "summary.md")],
        "plugins new": ["plugins", "new", "mine", "--output", str(tmp_path / "mine")],
    }
    for name, command in commands.items():
        with Disk(tmp_path)() as disk:
            assert probekit_cli(*command).code == 0, name
        made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for path in (tmp_path / "figures", tmp_path / "mine"):
            shutil.rmtree(path, ignore_errors=True)
        (tmp_path / "compared.html").unlink(missing_ok=True)
        for number in {1, disk.writes // 2 + 1, disk.writes}:
            with Disk(tmp_path, number)():
                ended = probekit_cli(*command)
            assert ended.code in (2, 5), (name, number)
            assert "cannot be written" in ended.sentence, (name, number, ended.sentence)
            for path, content in made.items():
                if path.exists():
                    assert path.read_bytes() == content, f"{name}: {path} is whole or not there"
            shutil.rmtree(tmp_path / "figures", ignore_errors=True)
            shutil.rmtree(tmp_path / "mine", ignore_errors=True)
            assert list(tmp_path.rglob(".*.tmp")) == []
    assert verify(run).whole


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may become larger, whoever writes it: the system says so to Rust as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def recorded(model: str, place: Path) -> probekit.Recording:
    return record(model, ["The sky is blue."] * 6, "block.0", place, shard_bytes=1 << 12)


def test_a_recording_survives_shards_that_cannot_be_written(model: str, tmp_path: Path) -> None:
    recorded(model, tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "whole").glob("*.safetensors"))
    with small_files(largest - 1), pytest.raises(StorageError, match="With that mended, the same command goes on"):
        recorded(model, tmp_path / "other")
    recorded(model, tmp_path / "other")
    assert_same(tmp_path / "other", tmp_path / "whole")


def test_a_recording_survives_every_write_that_fails(model: str, tmp_path: Path) -> None:
    recorded(model, tmp_path / "whole")
    place = tmp_path / "disk" / "other"
    place.parent.mkdir()
    with Disk(place)() as disk:
        recorded(model, place)
    for number in range(1, disk.writes + 1):
        shutil.rmtree(place)
        with Disk(place, number)(), pytest.raises(ProbekitError, match="cannot be written"):
            recorded(model, place)
        recorded(model, place)
        assert_same(place, tmp_path / "whole")


def test_a_study_on_a_full_disk_ends_with_a_sentence_and_goes_on_later(model: str, tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        f"""
        title = "Two seeds"
        [runs.descent]
        model = "{model}"
        plugins = ["gradient-inverter"]
        seeds = 2
        options = {{ sites = "block.0", steps = 2, restarts = 1, record_every = 2 }}
        """
    )
    with Disk(tmp_path / "whole")() as disk:
        study(file, tmp_path / "whole")
    for part in (0.0, 0.3, 0.5, 0.8, 1.0):
        place = tmp_path / f"other-{part}"
        number = 1 + round(part * (disk.writes - 1))
        with Disk(place, number)(), pytest.raises(ProbekitError, match="cannot be written"):
            study(file, place)
        found = study(file, place)
        assert (found.done, found.failures) == (2, {})
        for cell in (place / "cells").iterdir():
            assert_same(cell, tmp_path / "whole" / "cells" / cell.name)


# --- a real disk that is full ----------------------------------------------------------------------------------------

SMALL_DISK = """
set -e
mount -t tmpfs -o size={size} probekit {folder}
cd {folder}
{python} -m probekit run --model {model} -o sites=block.0 -o steps=2 -o restarts=1 --output run || ended=$?
test -f run/run.json && cp -r run {copy}
exit ${{ended:-0}}
"""


def test_a_disk_that_is_really_full(model: str, tmp_path: Path) -> None:
    """A file system of 200 KB, which has no room for the report."""
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = ["unshare", "--map-root-user", "--mount", "sh", "-c", f"mount -t tmpfs -o size=100k probekit {disk}"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no file system of one's own can be mounted here")
    script = SMALL_DISK.format(size="200k", folder=disk, python=sys.executable, model=model, copy=tmp_path / "kept")
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert ended.returncode == StorageError.exit_code, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: The folder 'run' cannot be written: the disk is full;")
    assert "go on with: probekit run --resume run" in last
    assert "Traceback" not in ended.stderr
    assert resume(tmp_path / "kept", Plugins()).status == "done"
