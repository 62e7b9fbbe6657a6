"""Files of a result in formats of others, and the model for an analysis of activations where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.runs import execute, resolve

SOURCE = """
import probekit

class Filing(probekit.ActivationAnalysis[probekit.Options]):
    \"\"\"Writes files, and says whether there was a model.\"\"\"
    name = "filing"
    names = ("weights/a.bin", "b.txt")

    def update(self, batch):
        self.seen = batch.prompts

    def finish(self):
        subject = self.context.subject
        found = "no model" if subject is None else f"{len(subject.anatomy.blocks)} blocks"
        return probekit.Result(finding=found, files={name: name.encode() for name in self.names})

    def report(self, result, page):
        for name, path in result.files.items():
            page.prose(f"{name}: {path.read_text()}")

@probekit.hookimpl
def probekit_analyses():
    return [Filing]
"""


@pytest.fixture
def begin(
    install_plugin: Callable[..., Path], tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> Callable[..., probekit.Run]:
    """A run of it, live or on a recording."""
    install_plugin("filing", SOURCE)
    model = tiny_gpt2()

    def run(recorded: bool = False) -> probekit.Run:
        plugins = probekit.Plugins()
        values: dict[str, Any] = {"model": {"name": str(model)}, "plugins": ["filing"], "prompts": ["Once"]}
        if recorded:
            probekit.record(model=str(model), prompts=["Once"], sites="blocks", output=tmp_path / "recording")
            values = {"activations": str(tmp_path / "recording"), "plugins": ["filing"]}
        return execute(resolve([("test", values)], plugins), plugins, tmp_path / "run")

    return run


def test_files_are_kept_beside_the_result_and_given_back_as_paths(begin: Callable[..., probekit.Run]) -> None:
    run = begin()
    folder = run.path / "analyses" / "filing"
    assert (folder / "files" / "weights" / "a.bin").read_bytes() == b"weights/a.bin"
    assert run.result.files == {name: folder / "files" / name for name in ("b.txt", "weights/a.bin")}
    assert probekit.read_run(run.path).result.files == run.result.files
    assert "weights/a.bin: weights/a.bin" in (folder / "page.json").read_text(encoding="utf-8")
    assert run.result.encode()["files/b.txt"] == b"b.txt"


@pytest.mark.parametrize(
    "name", ["../out", "/out", "a/../../out", "", ".", ".hidden", "a/.tmp", "a\\b", "a//b", "a/", "a\0b"]
)
def test_a_path_that_leads_elsewhere_is_refused(
    begin: Callable[..., probekit.Run], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(probekit.Plugins().analysis("filing"), "names", ("fine", name))
    run = begin()
    assert "of a result has no path below its folder" in run.failures["filing"]
    assert not (run.path / "analyses" / "filing" / "files").exists()


def test_an_analysis_of_activations_has_the_model_of_a_live_run_and_none_on_a_recording(
    begin: Callable[..., probekit.Run], tiny_gpt2: Callable[..., Path]
) -> None:
    assert begin(recorded=True).result.finding == "no model"
    subject = probekit.load(str(tiny_gpt2()))
    prompt = probekit.Prompt("", subject.encode("Once"), ["Once"])
    analysis = probekit.Plugins().analysis("filing")
    context = probekit.Context()
    assert analysis(analysis.options_model(), context).run(subject, [prompt]).finding == "3 blocks"
    assert context.subject is None


def test_a_live_run_gives_the_model(begin: Callable[..., probekit.Run]) -> None:
    assert begin().result.finding == "3 blocks"
