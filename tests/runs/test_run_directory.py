"""What a run leaves on disk, that it says the same each time, and that its report is drawn from that alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import probekit
from probekit import Plugins
from probekit.errors import UsageError
from probekit.runs import RunDirectory, resolve

OPTIONS = {"gradient-inverter": {"steps": 4, "restarts": 2}, "pseudo-inverse": {"top_k": 2}}
BOTH = ["gradient-inverter", "pseudo-inverse"]
ANALYSIS_FILES = {"options.json", "result.json", "tensors.safetensors", "page.json", "DONE"}
RUN_FILES = {
    "run.json",
    "config.toml",
    "events.jsonl",
    "timings.json",
    "analyses",
    "report.html",
    "summary.md",
    "hashes.json",
}


def refuse_constant(text: str) -> Any:
    raise AssertionError(f"{text} is no JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse_constant)


def content(folder: Path, *without: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in without
    }


@pytest.fixture(scope="module")
def run(tiny_gpt2: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> probekit.Run:
    """A run of both analyses on two prompts, which tests do not change."""
    return probekit.run(
        model=str(tiny_gpt2()),
        plugins=BOTH,
        prompts=["The sky </script> is", "ж\t🐎"],
        options=OPTIONS,
        seed=7,
        output=tmp_path_factory.mktemp("runs") / "run",
    )


@pytest.fixture
def copied(run: probekit.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copied run"))


# --- contents --------------------------------------------------------------------------------------------------------


def test_a_run_directory_holds_what_its_design_says_and_nothing_else(run: probekit.Run) -> None:
    assert {path.name for path in run.path.iterdir()} == RUN_FILES
    assert {path.name for path in (run.path / "analyses").iterdir()} == set(BOTH)
    for name in BOTH:
        assert {path.name for path in (run.path / "analyses" / name).iterdir()} == ANALYSIS_FILES


def test_every_json_file_is_strict_and_every_file_is_text_that_decodes(run: probekit.Run) -> None:
    documents = list(run.path.rglob("*.json"))
    assert len(documents) == 3 + 3 * len(BOTH)
    for path in documents:
        assert isinstance(strict(path.read_text(encoding="utf-8")), dict)
    for line in (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines():
        strict(line)
    tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))


def test_the_manifest_says_what_was_asked_and_what_it_was_done_with(run: probekit.Run) -> None:
    import torch
    import transformers

    manifest = strict((run.path / "run.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == 2
    assert manifest["status"] == run.status == "done"
    assert manifest["configuration"]["seed"] == 7
    assert manifest["configuration"]["options"]["gradient-inverter"]["steps"] == 4
    assert manifest["configuration"]["options"]["gradient-inverter"]["restarts"] == 2
    assert manifest["sources"]["options.gradient-inverter.steps"] == "python"
    assert manifest["sources"]["seed"] == "python"
    assert "options.gradient-inverter.top_k" not in manifest["sources"]
    versions = manifest["versions"]
    assert (versions["torch"], versions["transformers"]) == (torch.__version__, transformers.__version__)
    assert versions["probekit"] == probekit.__version__
    assert manifest["model"]["dtype"] == "float32"
    assert re.fullmatch("[0-9a-f]{64}", manifest["model"]["weights_sha256"])
    assert [prompt["text"] for prompt in manifest["prompts"]] == ["The sky </script> is", "ж\t🐎"]
    assert "".join(manifest["prompts"][0]["tokens"]) == "The sky </script> is"


def test_the_weight_hash_is_of_the_weights(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    hashes = []
    for number, model in enumerate((tiny_gpt2(), shutil.copytree(tiny_gpt2(), tmp_path / "copy"), tiny_gpt2(seed=1))):
        done = probekit.run(model=str(model), options={"steps": 1}, output=tmp_path / f"run{number}")
        hashes.append(strict((done.path / "run.json").read_text(encoding="utf-8"))["model"]["weights_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_results_come_back_from_disk_as_they_were_returned(run: probekit.Run) -> None:
    for name, result in run.results.items():
        again = probekit.Result.read(run.path / "analyses" / name)
        assert (again.metrics, again.tables, again.sequences) == (result.metrics, result.tables, result.sequences)
        assert again.tensors.keys() == result.tensors.keys()
        assert again.tensors
        for key, tensor in again.tensors.items():
            assert isinstance(tensor, numpy.ndarray)
            numpy.testing.assert_array_equal(tensor, result.tensors[key])


# --- the same again --------------------------------------------------------------------------------------------------


def test_one_seed_gives_the_same_bytes_and_times_live_in_one_file(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, probekit_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for number in range(2):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        torch.manual_seed(number)  # the caller's random state is none of the run's business
        words = [word for plugin in BOTH for word in ("--plugin", plugin)]
        assert probekit_cli("run", "--model", tiny_gpt2(), *words, "--seed", 3, "--output", "run").code == 0
    first, second = (content(tmp_path / str(number) / "run", "timings.json") for number in range(2))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], f"{name} differs between two runs of one seed"
    timings = strict((tmp_path / "0/run/timings.json").read_text(encoding="utf-8"))
    assert timings["load"] > 0
    assert all(timings["analyses"][name] > 0 for name in BOTH)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", timings["started"])


def test_another_seed_gives_other_starts(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    found = [
        probekit.run(
            model=str(tiny_gpt2()), options={"steps": 1, "restarts": 2}, seed=seed, output=tmp_path / str(seed)
        ).result.tensors["0/block.0/losses"]
        for seed in (0, 1)
    ]
    assert not numpy.array_equal(found[0], found[1])
    assert not numpy.array_equal(found[0][:, 0], found[0][:, 1]), "restarts start apart"


def test_an_analysis_finds_the_same_whatever_runs_beside_it(
    run: probekit.Run, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    alone = probekit.run(
        model=str(tiny_gpt2()),
        plugins=["gradient-inverter"],
        prompts=["The sky </script> is", "ж\t🐎"],
        options=OPTIONS["gradient-inverter"],
        seed=7,
        output=tmp_path / "alone",
    )
    folder = Path("analyses/gradient-inverter")
    assert content(alone.path / folder) == content(run.path / folder)


def test_a_run_leaves_the_callers_random_state_alone(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probekit.run(model={"name": str(tiny_gpt2()), "weights": "random"}, options={"steps": 1}, output=tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


# --- drawing again ---------------------------------------------------------------------------------------------------

# Nothing that knows the model or the plugin can be imported.
DRAW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "accelerate", "bitsandbytes", "probekit_plugins"}:
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Refuse())
from probekit.cli import main
main()
"""


def test_the_report_is_drawn_again_to_the_byte_without_model_torch_or_plugin(
    copied: Path, probekit_process: Any, run: probekit.Run
) -> None:
    for name in ("report.html", "summary.md"):
        (copied / name).unlink()
    for tensors in copied.rglob("tensors.safetensors"):
        tensors.unlink()
    ended = probekit_process("report", copied, code=DRAW, environment={"PROBEKIT_BLOCK_PLUGINS": ",".join(BOTH)})
    assert ended.code == 0, ended.err
    assert ended.out == f"Report: {copied / 'report.html'}\n"
    for name in ("report.html", "summary.md"):
        assert (copied / name).read_bytes() == (run.path / name).read_bytes()


def test_the_report_tells_the_run_apart_from_its_prompts(run: probekit.Run) -> None:
    shown = run.report_path.read_text(encoding="utf-8")
    assert "The sky </script> is" not in shown
    assert "The sky &lt;/script&gt; is" in shown
    manifest = strict((run.path / "run.json").read_text(encoding="utf-8"))
    assert manifest["model"]["weights_sha256"] in shown
    for name in BOTH:
        assert name in shown
    assert str(run.path) not in shown


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no run.json": lambda run: (run / "run.json").unlink(),
    "an empty run.json": lambda run: (run / "run.json").write_text(""),
    "half a run.json": lambda run: (run / "run.json").write_bytes((run / "run.json").read_bytes()[:400]),
    "a run.json that is a list": lambda run: (run / "run.json").write_text("[]"),
    "a run.json that is no text": lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"),
    "a run.json nested too deep": lambda run: (run / "run.json").write_text("[" * 100_000),
    "a run.json of another schema": lambda run: (run / "run.json").write_text('{"schema": 99}'),
    "a run.json that says nothing": lambda run: (run / "run.json").write_text('{"schema": 1}'),
    "a run.json with words for tables": lambda run: (run / "run.json").write_text(
        '{"schema": 1, "configuration": "x", "analyses": 5, "status": "done", "command": "", "versions": {}}'
    ),
    "no page": lambda run: (run / "analyses/pseudo-inverse/page.json").unlink(),
    "half a page": lambda run: (run / "analyses/pseudo-inverse/page.json").write_text('{"title": '),
    "a page without blocks": lambda run: (run / "analyses/pseudo-inverse/page.json").write_text("{}"),
    "a page of another kind": lambda run: (run / "analyses/pseudo-inverse/page.json").write_text(
        '{"schema": 1, "title": "x", "blocks": [{"kind": "hologram"}]}'
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_one_sentence_and_its_old_report_stays(copied: Path, probekit_cli: Any, kind: str) -> None:
    DAMAGE[kind](copied)
    before = (copied / "report.html").read_bytes()
    ended = probekit_cli("report", copied)
    assert ended.code == 2, ended.err
    assert str(copied) in ended.sentence
    assert (copied / "report.html").read_bytes() == before


def test_a_result_that_is_missing_or_of_another_schema_is_a_sentence(copied: Path) -> None:
    folder = copied / "analyses/pseudo-inverse"
    for text, message in (('{"schema": 99}', "not of schema 1"), ("{", "damaged"), ("[]", "not of schema")):
        (folder / "result.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            probekit.Result.read(folder)
    (folder / "result.json").unlink()
    with pytest.raises(UsageError, match=r"There is no result\.json"):
        probekit.Result.read(folder)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory.create(tmp_path / "run", {"run.json": b"old"}) as directory:
        pass

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(probekit.StorageError, match="the disk is full"):
            directory.write("run.json", b"new")
    assert [(path.name, path.read_bytes()) for path in directory.path.iterdir()] == [("run.json", b"old")]


def test_a_json_file_with_nan_is_not_written(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", {"x.json": b"{}"})
    with pytest.raises(ValueError, match="JSON"):
        directory.write_json("x.json", {"loss": float("nan")})
    assert (directory.path / "x.json").read_bytes() == b"{}"


def test_a_new_run_directory_is_for_others_to_read_as_the_umask_says(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        created = RunDirectory.create(tmp_path / "deep" / "run", {"run.json": b"{}"})
    finally:
        os.umask(mask)
    assert created.path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in created.path.parent.iterdir()] == ["run"]


def test_what_was_discarded_takes_its_new_parents_along_but_no_neighbour(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path / "runs" / "first", {"run.json": b"{}"})
    second = RunDirectory.create(tmp_path / "runs" / "second", {"run.json": b"{}"})
    first.discard()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["second"]
    second.discard()
    assert (tmp_path / "runs").is_dir(), "it was there when the second came"
    third = RunDirectory.create(tmp_path / "a" / "b" / "third", {"run.json": b"{}"})
    third.discard()
    assert not (tmp_path / "a").exists()


# --- layers of configuration -----------------------------------------------------------------------------------------


def test_later_layers_win_value_by_value() -> None:
    layers = [
        ("file", {"model": {"name": "a", "dtype": "float64"}, "seed": 1, "options": {"steps": 5, "top_k": 2}}),
        ("command line", {"model": {"name": "b"}, "options": {"gradient-inverter": {"top_k": 3}}}),
        ("last", {"options": {"gradient-inverter.restarts": 4}}),
    ]
    resolved = resolve(layers, Plugins())
    assert (resolved.config.model.name, resolved.config.model.dtype, resolved.config.seed) == ("b", "float64", 1)
    options = resolved.options["gradient-inverter"].model_dump()
    assert (options["steps"], options["top_k"], options["restarts"]) == (5, 3, 4)
    assert resolved.sources == {
        "model.name": "command line",
        "model.dtype": "file",
        "seed": "file",
        "options.gradient-inverter.steps": "file",
        "options.gradient-inverter.top_k": "command line",
        "options.gradient-inverter.restarts": "last",
    }


def test_a_configuration_survives_the_way_through_toml() -> None:
    values = {
        "model": {"name": "m", "device_map": {"": 0}, "max_memory": {0: "1GiB", "cpu": 5}, "depth": 2},
        "plugins": BOTH,
        "options": OPTIONS,
        "prompts": ["a\n\"b\"\\ '''\t\x7f", "ж 🐎 \u2028"],
        "input_ids": [[1, 2]],
        "seed": 2**62,
        "special_tokens": False,
        "block_plugins": ["x"],
    }
    first = resolve([("python", values)], Plugins()).config
    again = resolve([("file", tomllib.loads(first.to_toml()))], Plugins()).config
    assert again == first


def test_a_plugin_asked_for_twice_runs_once() -> None:
    assert list(resolve([("x", {"plugins": [*BOTH, BOTH[0]]})], Plugins()).analyses) == BOTH
