"""Analyses on a recording: the same results as on the model, byte for byte, or one sentence that says why not."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.errors import UsageError

PROMPTS = ["The sky is blue.", "Once upon a time", "a", "What does a layer know?", "Lily"] * 3

MEANS = """
import probekit

class MeansOptions(probekit.Options):
    "Of the means."
    sites: probekit.Sites = "blocks"

class Means(probekit.ActivationAnalysis[MeansOptions]):
    "The mean activation at each site, and which tokens it is of."
    name = "means"

    def __init__(self, options, context=None):
        super().__init__(options, context)
        self.sums, self.rows, self.tokens = {}, [], []

    def update(self, batch):
        for site in batch.sites:
            self.sums[site] = self.sums.get(site, 0) + batch.rows(site).double().sum(0)
            batch[site].zero_()
        self.rows += zip(batch.row_prompts.tolist(), batch.positions.tolist(), batch.row_ids.tolist())
        self.tokens += batch.tokens()

    def finish(self):
        return probekit.Result(
            finding=f"{len(self.rows)} tokens.",
            metrics={"tokens": len(self.rows), "texts": "".join(map("".join, self.tokens))},
            tables={"rows": [{"prompt": p, "position": i, "id": t} for p, i, t in self.rows]},
            tensors={site: (total / len(self.rows)).float() for site, total in self.sums.items()},
        )

    def report(self, result, page):
        page.prose(result.finding)

class Others(Means):
    "The same of the last block."
    name = "others"
    def sites(self):
        return "block.-1"

class Stubborn(Means):
    "Interrupts the run in its second batch."
    name = "stubborn"
    interrupt = True
    def update(self, batch):
        super().update(batch)
        if Stubborn.interrupt:
            Stubborn.interrupt = False
            raise KeyboardInterrupt

@probekit.hookimpl
def probekit_analyses():
    return [Means, Others, Stubborn]
"""


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(scope="module")
def recording(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy it before changing a file."""
    folder = tmp_path_factory.mktemp("recorded") / "recording"
    probekit.record(model, PROMPTS, "blocks,norm", folder)
    return folder


@pytest.fixture
def means(install_plugin: Any) -> None:
    install_plugin("means", MEANS)


@pytest.fixture
def refused(probekit_cli: Any, tmp_path: Path) -> Callable[..., str]:
    """`refused(*options)`: the one sentence of a run that is not begun."""

    def check(*options: object) -> str:
        ended = probekit_cli("run", *options, "--output", tmp_path / "parent" / "run", "--json")
        assert ended.code == 2, ended.err
        assert ended.out == ""
        assert not (tmp_path / "parent").exists()
        sentence: str = ended.sentence
        return sentence

    return check


def analyses(run: Path) -> dict[str, bytes]:
    """Every file that an analysis left."""
    folder = run / "analyses"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def manifest(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return document


# --- the same results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", ["blocks", "norm,block.-1"])
def test_results_on_a_recording_are_those_on_the_model_byte_for_byte(
    means: None, probekit_cli: Any, model: Path, recording: Path, tmp_path: Path, sites: str
) -> None:
    words = ["--plugin", "means", "--plugin", "others", "-o", f"means.sites={sites}"]
    prompts = [word for text in PROMPTS for word in ("--prompt", text)]
    live = probekit_cli("run", "--model", model, *prompts, *words, "--output", tmp_path / "live")
    assert live.code == 0, live.err
    recorded = probekit_cli("run", "--activations", recording, *words, "--output", tmp_path / "recorded")
    assert recorded.code == 0, recorded.err
    found, expected = analyses(tmp_path / "recorded"), analyses(tmp_path / "live")
    assert {"means/result.json", "means/tensors.safetensors", "others/result.json"} <= set(expected)
    assert found == expected
    assert recorded.out.splitlines()[:-1] == live.out.splitlines()[:-1]


def test_no_model_is_loaded(
    means: None, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    copy = Path(shutil.copytree(recording, tmp_path / "copy"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("probekit.models.loading.load_model", refuse)
    monkeypatch.setattr("probekit.subject.load_model", refuse)
    run = probekit.run(activations=copy, plugins="means", output=tmp_path / "run")
    assert run.status == "done"
    assert run.results["means"].metrics["tokens"] == probekit.Recording(copy).tokens


def test_the_run_says_of_which_recording_model_and_prompts_it_is(means: None, recording: Path, tmp_path: Path) -> None:
    run = probekit.run(activations=recording, plugins="means", output=tmp_path / "run")
    known, opened = manifest(run.path), probekit.Recording(recording)
    assert known["model"] == opened.manifest["model"]
    assert known["recording"]["tokens"] == opened.tokens
    assert known["recording"]["path"] == str(recording)
    assert known["prompt_count"] == len(PROMPTS)
    assert [prompt["text"] for prompt in known["prompts"]] == PROMPTS
    assert str(recording) in (run.path / "report.html").read_text(encoding="utf-8")


def test_the_command_of_a_run_repeats_it(means: None, probekit_cli: Any, recording: Path, tmp_path: Path) -> None:
    words = ["--activations", recording, "--plugin", "means", "-o", "sites=norm", "--seed", "3"]
    assert probekit_cli("run", *words, "--output", tmp_path / "run").code == 0
    command = shlex.split(manifest(tmp_path / "run")["command"])
    assert command[:2] == ["probekit", "run"]
    assert command[2] == "--activations"
    assert probekit_cli(*command[1:], "--output", tmp_path / "again").code == 0
    assert probekit_cli("run", "--config", tmp_path / "run" / "config.toml", "--output", tmp_path / "config").code == 0
    for again in ("again", "config"):
        assert analyses(tmp_path / again) == analyses(tmp_path / "run")
        one, other = manifest(tmp_path / again), manifest(tmp_path / "run")
        assert one["configuration"] == other["configuration"]
        assert one["command"] == other["command"]


def test_the_bundled_analyses_of_activations_run_on_a_recording_as_on_the_model(
    model: Path, recording: Path, tmp_path: Path
) -> None:
    able = [
        name
        for name, analysis in probekit.Plugins().analyses().items()
        if issubclass(analysis, probekit.ActivationAnalysis)
    ]
    # Without what takes the model as well; a recording does not know what the model is called, and pages show times.
    options = {"autoencoder": {"splice_tokens": 0, "steps": 20, "seeds": 1}}
    live = probekit.run(model=model, prompts=PROMPTS, plugins=able, options=options, output=tmp_path / "live")
    recorded = probekit.run(activations=recording, plugins=able, options=options, output=tmp_path / "recorded")
    assert live.failures == recorded.failures == {}
    one, other = (
        {
            name: content
            for name, content in analyses(run.path).items()
            if not name.startswith("autoencoder/") or not name.endswith(("cfg.json", "page.json"))
        }
        for run in (recorded, live)
    )
    assert "autoencoder/files/block.2/plain-8-seed0/weights.safetensors" in one
    assert one == other


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_site_that_was_not_recorded_is_refused_with_those_that_were(
    means: None, refused: Any, recording: Path
) -> None:
    for site in ("logits", "block.9", "embedding"):
        sentence = refused("--activations", recording, "--plugin", "means", "-o", f"sites={site}")
        assert site in sentence
    assert "it has: block.0, block.1, block.2, norm" in sentence


@pytest.mark.parametrize("name", ["gradient-inverter", "clamped-walk"])
def test_an_analysis_that_needs_the_model_is_refused_with_those_that_do_not(
    means: None, refused: Any, recording: Path, name: str
) -> None:
    sentence = refused("--activations", recording, "--plugin", name)
    assert sentence.startswith(f"'{name}' needs the model itself, which a recording does not have; ")
    assert "means" in sentence
    assert name in refused("--activations", recording, "--plugin", "means", "--plugin", name)


BESIDE: dict[str, tuple[list[str], str]] = {
    "a prompt": (["--prompt", "a"], "leave out prompts (command line), or --activations"),
    "ids": (["--input-ids", "1,2"], "leave out input-ids (command line), or --activations"),
    "another model": (["--model", "demo"], "leave out what says which model, or how"),
    "another dtype": (["--dtype", "float64"], "leave out what says which model, or how"),
    "both weights": (
        ["--compare-random"],
        "loads the model twice, and a recording is of one; leave one of the two out",
    ),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_a_recording_decides_is_not_given_beside_it(means: None, refused: Any, recording: Path, kind: str) -> None:
    options, part = BESIDE[kind]
    assert part in refused("--activations", recording, "--plugin", "means", *options)


def test_the_recorded_model_itself_may_be_named(
    means: None, probekit_cli: Any, model: Path, recording: Path, tmp_path: Path
) -> None:
    words = ["--activations", recording, "--model", model, "--plugin", "means"]
    assert probekit_cli("run", *words, "--output", tmp_path / "run").code == 0


def test_what_is_no_recording_or_an_unfinished_one_is_refused(
    means: None, refused: Any, recording: Path, tmp_path: Path
) -> None:
    assert "is no recording" in refused("--activations", tmp_path / "nowhere", "--plugin", "means")
    copy = Path(shutil.copytree(recording, tmp_path / "copy"))
    (copy / "index.jsonl").write_text("")
    sentence = refused("--activations", copy, "--plugin", "means")
    assert "has 0 of" in sentence
    assert "go on with it by the `probekit record` command that began it" in sentence
    (copy / "recording.json").write_text("{")
    assert "is damaged" in refused("--activations", copy, "--plugin", "means")


def test_a_recording_that_is_damaged_within_fails_the_analysis_with_its_shard(
    means: None, probekit_cli: Any, recording: Path, tmp_path: Path, model: Path
) -> None:
    copy = tmp_path / "copy"
    probekit.record(model, PROMPTS, "norm", copy, shard_bytes=128 * 20)
    shard = copy / probekit.Recording(copy).shards[-1]["shard"]
    shard.write_bytes(bytes(shard.stat().st_size))
    ended = probekit_cli(
        "run", "--activations", copy, "--plugin", "means", "-o", "sites=norm", "--output", tmp_path / "run"
    )
    assert ended.code in (1, 2), ended.err
    assert f"The shard '{shard}' is damaged" in ended.sentence


# --- gone on with ----------------------------------------------------------------------------------------------------


def test_an_interrupted_run_on_a_recording_is_gone_on_with(
    means: None, probekit_cli: Any, recording: Path, tmp_path: Path
) -> None:
    words = ["--activations", recording, "--plugin", "stubborn"]
    ended = probekit_cli("run", *words, "--output", tmp_path / "run")
    assert ended.code == 130
    assert "--resume" in ended.err
    assert manifest(tmp_path / "run")["analyses"]["stubborn"]["status"] == "interrupted"
    ended = probekit_cli("run", "--resume", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert probekit_cli("run", *words, "--output", tmp_path / "whole").code == 0
    assert analyses(tmp_path / "run") == analyses(tmp_path / "whole")


def test_a_recording_that_has_changed_in_between_is_noticed(
    means: None, probekit_cli: Any, model: Path, recording: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(recording, tmp_path / "place"))
    assert probekit_cli("run", "--activations", place, "--plugin", "stubborn", "--output", tmp_path / "run").code == 130
    before = manifest(tmp_path / "run")
    shutil.rmtree(place)
    probekit.record(model, [*PROMPTS[:-1], "Mary"], "blocks,norm", place)
    ended = probekit_cli("run", "--resume", tmp_path / "run")
    assert ended.code == 2
    assert ended.sentence == f"The recording '{place}' is not the one that the run was begun with; start it anew."
    assert manifest(tmp_path / "run") == before
    shutil.rmtree(place)
    ended = probekit_cli("run", "--resume", tmp_path / "run")
    assert ended.code == 2
    assert "is no recording" in ended.sentence


def test_a_run_is_drawn_again_when_its_recording_is_gone(
    means: None, probekit_cli: Any, recording: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(recording, tmp_path / "place"))
    run = probekit.run(activations=place, plugins="means", output=tmp_path / "run")
    drawn = run.report_path.read_bytes()
    shutil.rmtree(place)
    assert probekit_cli("report", run.path).code == 0
    assert run.report_path.read_bytes() == drawn
    assert probekit.read_run(run.path).results["means"].metrics == run.results["means"].metrics


def test_from_python_a_prompt_beside_a_recording_is_refused_too(means: None, recording: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are those that were recorded; leave out prompts"):
        probekit.run(activations=recording, plugins="means", prompts="a", output=tmp_path / "run")
