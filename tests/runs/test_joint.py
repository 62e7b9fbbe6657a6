"""Analyses that belong together: the page that compares them, and those that read the others' results."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probekit
from probekit.runs import execute, resolve
from probekit_plugins.walks import comparison
from probekit_plugins.walks.comparison import Way

TITLE = "Walks side by side"
WALKS = ["clamped-walk", "null-space-walk"]
OPTIONS: dict[str, dict[str, Any]] = {
    "clamped-walk": {"steps": 4, "walkers": 2, "inner": [1, 3], "record_every": 1},
    "null-space-walk": {"steps": 3, "walkers": 2, "iterations": 5, "correction_iterations": 4, "record_every": 1},
}
RUN = Path("run")  # relative, so that no two runs differ in their paths


def begin(model: Path, listener: Any = None, **changed: dict[str, Any]) -> probekit.Run:
    """Both walks from two prompts at the last block, in RUN."""
    plugins = probekit.Plugins()
    options = {name: {**OPTIONS[name], **changed.get(name.partition("-")[0], {})} for name in WALKS}
    values = {
        "model": {"name": str(model)},
        "plugins": WALKS,
        "prompts": ["The sky is blue.", "Once"],
        "options": options,
    }
    return execute(resolve([("test", values)], plugins), plugins, RUN, listener)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(scope="module")
def together(model: Path, tmp_path_factory: pytest.TempPathFactory) -> probekit.Run:
    """A run of both walks. Copy its folder before changing a file."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = begin(model)
    return probekit.read_run(folder / run.path)


@pytest.fixture
def copied(together: probekit.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(together.path, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


def manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return document


def blocks(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Those blocks of the joint page."""
    [page] = json.loads((folder / "joint.json").read_text(encoding="utf-8"))["pages"]
    assert page["title"] == TITLE
    return [block for block in page["blocks"] if block["type"] == kind]


def titles(folder: Path) -> list[str]:
    """The report's sections in order, without the overview and the provenance."""
    report = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'<section id="[^"]*" class="analysis">\s*<h2>([^<]*)</h2>', report)
    assert found.pop() == "Provenance"
    return found


# --- the page that walks have in common ------------------------------------------------------------------------------


def test_two_walks_of_one_run_are_compared_on_top_of_the_report(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    options = [
        word
        for name in WALKS
        for key, value in OPTIONS[name].items()
        for word in ("-o", f"{name}.{key}={value}")
    ]  # fmt: skip
    named = ["--plugin", "clamped-walk", "--plugin", "null-space-walk"]
    ended = probekit_cli("run", "--model", model, *named, *options, "--output", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    assert list(json.loads(ended.out)["analyses"]) == WALKS
    assert manifest(tmp_path / "run")["joint"] == {TITLE: {"status": "done"}}
    assert titles(tmp_path / "run") == [TITLE, *WALKS]
    [finding] = [block["text"] for block in blocks(tmp_path / "run", "finding")]
    assert finding in unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert TITLE in (tmp_path / "run" / "summary.md").read_text(encoding="utf-8")


WAYS = [("clamped-walk", "inner 1"), ("clamped-walk", "inner 3"), ("null-space-walk", "null space")]


def at_common_distance(run: probekit.Run, prompt: int, name: str) -> tuple[float, list[list[float]]]:
    """The distance that all walkers have reached, and a figure there for each way and walker: by numpy, on a straight
    line between the logarithms of the recorded steps beside it.
    """
    places = [(run.results[walk].tensors, f"{prompt}/block.2/{track}") for walk, track in WAYS]
    distance = min(float(tensors[f"{prefix}/input_l2"].max(axis=0).min()) for tensors, prefix in places)
    found = []
    for tensors, prefix in places:
        figures, inputs = tensors[f"{prefix}/{name}"], tensors[f"{prefix}/input_l2"]
        figures = np.median(figures, axis=-1) if figures.ndim == 3 else figures  # several draws of noise
        arrived = (inputs >= distance * (1 - 1e-9)).argmax(axis=0)
        row = []
        for walker, after in enumerate(arrived):
            pair = figures[after - 1 : after + 1, walker].astype(float)
            share = np.interp(distance, inputs[after - 1 : after + 1, walker], [0, 1])
            logarithmic = bool((pair > 0).all())
            middle = np.interp(share, [0, 1], np.log(pair) if logarithmic else pair)
            row.append(float(np.exp(middle) if logarithmic else middle))
        found.append(row)
    return distance, found


def medians_in(table: dict[str, Any], column: str) -> list[float]:
    """The first figure of each cell of a column."""
    return [float(str(row[table["columns"].index(column)]).split()[0]) for row in table["rows"]]


def test_walks_are_compared_at_the_distance_that_all_have_reached(together: probekit.Run) -> None:
    """One table for each prompt, one row for each way; every figure by an independent interpolation."""
    tables = blocks(together.path, "table")
    assert len(tables) == 2
    subject = probekit.load(together.manifest["configuration"]["model"]["name"])
    for prompt, table in enumerate(tables):
        distance, outputs = at_common_distance(together, prompt, "output_l2")
        ids = together.results["clamped-walk"].sequences["prompt"][prompt].ids
        share = distance / float(subject.embed(subject.check_ids(ids)).norm())
        where = f"d_i = {distance:.3g}, {100 * share:.3g}% of the embeddings' norm"
        assert table["caption"].startswith(f"At {where} (")
        assert [row[0] for row in table["rows"]] == [
            "clamped-walk (inner 1)",
            "clamped-walk (inner 3)",
            "null-space-walk",
        ]
        assert medians_in(table, "d_o") == pytest.approx([np.median(each) for each in outputs], rel=6e-3)
        ratios = [np.median([distance / output for output in each]) for each in outputs]
        assert medians_in(table, "r₂") == pytest.approx(ratios, rel=6e-3)
        [finding] = [block["text"] for block in blocks(together.path, "finding")]
        assert prompt or finding.startswith(f"At the same distance from the prompt ({where}), Gaussian noise")


def test_r_against_noise_is_the_walks_own_figure(together: probekit.Run) -> None:
    """Over the median of the noise's draws, as on each walk's page: one name, one figure."""
    for prompt, table in enumerate(blocks(together.path, "table")):
        _, outputs = at_common_distance(together, prompt, "output_l2")
        _, noise = at_common_distance(together, prompt, "noise_l2")
        expected = [np.median(np.array(wild) / np.array(own)) for wild, own in zip(noise, outputs, strict=True)]
        assert medians_in(table, "r₂ over noise's") == pytest.approx(expected, rel=6e-3)
        [finding] = [block["text"] for block in blocks(together.path, "finding")]
        assert prompt or f"{max(expected):.3g} times as far as " in finding


def test_curves_are_over_the_distance_with_noise_beside_the_walks(together: probekit.Run) -> None:
    """Not over steps, whose lengths differ from walk to walk."""
    names = ["clamped-walk (inner 1)", "clamped-walk (inner 3)", "null-space-walk"]
    over, moved = blocks(together.path, "lines")[:2]
    assert [each["x"] for each in (over, moved)] == ["d_i, L2", "d_i, L2"]
    assert [series["name"] for series in over["series"]] == names
    assert [series["name"] for series in moved["series"]] == [*names, "Gaussian noise"]
    for (walk, track), ratios, outputs in zip(WAYS, over["series"], moved["series"], strict=False):
        tensors, prefix = together.results[walk].tensors, f"0/block.2/{track}"
        inputs, own = tensors[f"{prefix}/input_l2"][1:], tensors[f"{prefix}/output_l2"][1:]
        noise = np.median(tensors[f"{prefix}/noise_l2"][1:], axis=-1)
        expected = np.stack([np.median(inputs, axis=1), np.median(noise / own, axis=1)], 1)
        np.testing.assert_allclose(ratios["points"], expected, rtol=1e-6)
        np.testing.assert_allclose(outputs["points"], np.stack([expected[:, 0], np.median(own, axis=1)], 1), rtol=1e-6)


def made_up(inputs: list[list[float]], **figures: list[list[float]]) -> Way:
    """A way with these figures, `[S][B]`."""
    tensors = {f"0/s/t/{name}": np.array(values) for name, values in {"input_l2": inputs, **figures}.items()}
    rows: list[dict[str, Any]] = [{"track": "t", "control": False}]
    return Way("walk", "t", probekit.Result(tables={"walkers": rows}, tensors=tensors), "0/s/t")


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        pytest.param(0.5, 1.0, id="straight where the activation has not moved yet"),
        pytest.param(1.0, 2.0, id="at a recorded step"),
        pytest.param(2.0, 4.0, id="logarithmic between steps, the first time that it is there"),
        pytest.param(3.0, 8.0, id="before it came back"),
        pytest.param(4.0, 16 ** (2 / 3), id="after it came back"),
        pytest.param(5.0, 16.0, id="at the end"),
    ],
)
def test_figures_are_read_where_a_walker_is_so_far_away(distance: float, expected: float) -> None:
    way = made_up([[0], [1], [3], [2], [5]], output_l2=[[0], [2], [8], [1], [16]])
    assert way.at(distance, way.tensor("output_l2")) == pytest.approx([expected])


def test_each_walker_is_read_at_its_own_step_and_the_slowest_says_how_far() -> None:
    way = made_up([[0, 0], [1, 4], [4, 4], [9, 5]], changed=[[0, 0], [1, 4], [4, 5], [4, 6]])
    assert way.reach() == 5
    assert way.at(4.0, way.tensor("changed")) == [4, 4]
    assert way.at(2.5, way.tensor("changed")) == pytest.approx([2, 2.5])
    assert way.at(5 + 1e-12, way.tensor("changed"))[1] == pytest.approx(6), "rounding does not push it past the end"


def test_one_walk_alone_is_compared_with_nothing(model: Path, tmp_path: Path) -> None:
    run = probekit.run(model=model, plugins="clamped-walk", options=OPTIONS["clamped-walk"], output=tmp_path / "run")
    assert run.manifest["joint"] == {}
    assert not (run.path / "joint.json").exists()
    assert titles(run.path) == ["clamped-walk"]


def test_walks_at_different_sites_share_nothing_and_the_page_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = begin(model, clamped={"sites": "block.0"}, null={"sites": "block.1"})
    assert run.status == "done"
    assert [block["text"] for block in blocks(run.path, "note")] == [
        "The walks share no prompt and site at which all of them moved."
    ]
    assert blocks(run.path, "table") == blocks(run.path, "finding") == []


def test_a_walk_that_did_not_move_is_compared_nowhere() -> None:
    still, moving = (made_up([[0.0], [end]], output_l2=[[0.0], [end]]).result for end in (0.0, 1.0))
    for result in (still, moving):
        result.sequences["prompt"] = [probekit.TokenSequence([1], ["a"], {"prompt": 0, "site": "s"})]
    page = probekit.Page(TITLE)
    comparison.draw({"one": still, "other": moving}, page)
    notes = [block["text"] for block in page.blocks if block["type"] == "note"]
    assert notes == [
        "At s, prompt 1, one of the walks has not moved.",
        "The walks share no prompt and site at which all of them moved.",
    ]


# --- when it fails, and afterwards -----------------------------------------------------------------------------------


def refuse(error: BaseException) -> Callable[..., None]:
    def draw(*_: Any) -> None:
        raise error

    return draw


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("no\nway"), "ValueError: no way"),
        (probekit.AnalysisError("They cannot be compared."), "They cannot be compared."),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_comparison_that_raises_is_a_failure_and_the_results_are_kept(
    error: BaseException,
    sentence: str,
    together: probekit.Run,
    probekit_cli: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "draw", refuse(error))
    config = together.path / "config.toml"
    ended = probekit_cli("run", "--config", config, "--output", tmp_path / "run", "--json")
    assert ended.code == 1
    assert ended.sentence == f"{TITLE}: {sentence}"
    assert json.loads(ended.out)["status"] == "failed"
    assert manifest(tmp_path / "run")["joint"] == {TITLE: {"status": "failed", "error": sentence}}
    assert not (tmp_path / "run" / "joint.json").exists()
    assert titles(tmp_path / "run") == WALKS
    assert sentence in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    found, expected = (contents(folder / "analyses") for folder in (tmp_path / "run", together.path))
    assert found == expected


def test_a_failed_comparison_is_among_the_failures_that_are_read_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "draw", refuse(ValueError("no")))
    run = begin(model)
    found = probekit.read_run(RUN)
    assert found.status == run.status == "failed"
    assert found.failures == run.failures == {TITLE: "ValueError: no"}
    assert found.document() == run.document()


def test_a_failed_comparison_is_drawn_when_the_run_is_resumed(
    model: Path, together: probekit.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is there then is byte for byte what a run without the failure leaves."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "draw", refuse(ValueError("no")))
        failed = begin(model)
    assert (failed.status, failed.failures) == ("failed", {TITLE: "ValueError: no"})
    assert probekit.resume(RUN).status == "done"
    found, expected = contents(RUN), contents(together.path)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert sorted(found) == sorted(expected)


def test_walks_that_are_interrupted_are_compared_once_both_are_done(
    model: Path, together: probekit.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)

    class Stop:
        def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
            if label == "block.2 null space" and done == 2:
                signal.raise_signal(signal.SIGINT)

        def message(self, text: str) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        begin(model, Stop())
    assert manifest(RUN)["joint"] == {}
    assert titles(RUN) == ["clamped-walk"]
    assert probekit.resume(RUN).status == "done"
    assert contents(RUN) == contents(together.path)


def test_a_report_that_is_drawn_again_keeps_the_comparison(
    together: probekit.Run, copied: Path, probekit_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report.html", "summary.md"):
        (copied / name).unlink()
    monkeypatch.setattr(comparison, "draw", refuse(AssertionError("only what was saved is drawn")))
    ended = probekit_cli("report", copied)
    assert ended.code == 0, ended.err
    assert contents(copied) == contents(together.path)
    assert titles(copied) == [TITLE, *WALKS]


# --- analyses that read the others' results --------------------------------------------------------------------------

READERS = """
import numpy
import probekit

class Reader(probekit.Analysis[probekit.Options]):
    "Says what it was given."
    name = "reader"
    consumes = ("token-sequences",)

    def run(self, subject, prompts):
        given = self.context.results
        tensors = [tensor for result in given.values() for tensor in result.tensors.values()]
        assert tensors and all(isinstance(tensor, numpy.ndarray) for tensor in tensors), "as read back from disk"
        ids = [sequence.ids for sequence in given["pseudo-inverse"].sequences.get("margins", [])]
        return probekit.Result(metrics={"given": " ".join(given), "sequences": len(ids)})

    def report(self, result, page):
        page.prose(result.metrics["given"])

class Second(Reader):
    "Says it again."
    name = "second-reader"

@probekit.hookimpl
def probekit_analyses():
    return [Reader, Second]
"""


@pytest.mark.parametrize(
    "order", [["reader", "pseudo-inverse", "clamped-walk"], ["clamped-walk", "reader", "pseudo-inverse"]]
)
def test_an_analysis_that_consumes_runs_last_and_sees_the_others_results(
    order: list[str], install_plugin: Any, model: Path, tmp_path: Path
) -> None:
    install_plugin("readers", READERS)
    options = {"clamped-walk": OPTIONS["clamped-walk"]}
    run = probekit.run(model=model, plugins=order, options=options, output=tmp_path / "run")
    others = [name for name in order if name != "reader"]
    assert run.failures == {}
    assert run.results["reader"].metrics["given"] == " ".join(others)
    assert list(run.manifest["analyses"]) == titles(run.path) == [*others, "reader"]
    assert run.manifest["configuration"]["plugins"] == order, "the configuration stays as it was given"


def test_a_resumed_run_gives_what_was_done_before_to_those_that_consume(
    install_plugin: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plugin("readers", READERS)
    plugins = ["second-reader", "reader", "pseudo-inverse"]
    manager = probekit.Plugins()
    with monkeypatch.context() as patch:
        for name in ("reader", "second-reader"):
            patch.setattr(manager.analysis(name), "run", lambda *_: 1 / 0)
        failed = probekit.run(model=model, plugins=plugins, output=tmp_path / "run", manager=manager)
    assert list(failed.results) == ["pseudo-inverse"]
    assert failed.failures == dict.fromkeys(["second-reader", "reader"], "ZeroDivisionError: division by zero")
    resumed = probekit.resume(tmp_path / "run")
    assert resumed.results["second-reader"].metrics["given"] == "pseudo-inverse"
    assert resumed.results["reader"].metrics["given"] == "pseudo-inverse second-reader"
