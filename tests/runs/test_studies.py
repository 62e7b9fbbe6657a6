"""Studies: cells, verdicts, resuming, shards and the report."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from probekit.errors import ProbekitError, UsageError
from probekit.plugins import Plugins
from probekit.runs.studies import Study, study
from probekit.runs.studies.cells import Cell, expand, share
from probekit.runs.studies.file import Expectation, StudyFile, read_study, substituted
from probekit.runs.studies.judge import Judgement
from probekit.runs.studies.page import _in_short, _places
from tests.runs.folders import assert_same, contents

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</script><script>window.ranHostile = 1</script><img src=x onerror=alert(1)> {{ 7*7 }} \u202e"


class Recorder:
    """A listener that keeps what it is told, and does something at the n-th sign of progress."""

    def __init__(self, moment: int = 0, action: Callable[[], None] = lambda: None) -> None:
        self._moment, self._action = moment, action
        self.seen = 0
        self.messages: list[str] = []

    @property
    def begun(self) -> list[str]:
        return [text for text in self.messages if text.startswith("Cell ")]

    def progress(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        self.seen += 1
        if self.seen == self._moment:
            self._action()

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2()


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probekit.analysis.context.SECONDS_BETWEEN_UPDATES", 0.0)


def write(values: dict[str, Any], name: str = "small.toml") -> Path:
    Path(name).write_text(tomli_w.dumps(values), encoding="utf-8")
    return Path(name)


def inverter(model: Path, **changes: Any) -> dict[str, Any]:
    """Four cells of a few steps: two sites, two seeds."""
    run = {
        "model": str(model),
        "plugins": "gradient-inverter",
        "options": {"sites": "$site", "steps": 5, "restarts": 2, "next_token": False},
        "prompts": "The sky is blue.",
        "seeds": 2,
        "sweep": {"site": ["block.0", "block.2"]},
    }
    return {"title": "Small", "runs": {"inverter": run | changes}}


def accuracy(**changes: Any) -> dict[str, Any]:
    """An expectation that is met by anything."""
    figure = {"run": "inverter", "table": "restarts", "column": "token_accuracy"}
    expectation = {
        "id": "in-range",
        "claim": "Accuracy is a share",
        "figures": {"found": figure},
        "verdicts": {"holds": "least(found) >= 0 and most(found) <= 1"},
        "expect": "holds",
        "because": "{count(found)} restarts.",
    }
    return expectation | changes


def expanded(values: dict[str, Any], plugins: Plugins, **parameters: Any) -> list[Cell]:
    return expand(read_study(write(values), parameters), plugins)


# The file and its variables


def test_a_name_alone_is_the_value_and_in_a_text_it_is_written_out() -> None:
    variables = {"block": 3, "sites": ["a", "b"], "rate": 0.5, "on": True}
    assert substituted("$block", variables) == 3
    assert substituted("$sites", variables) == ["a", "b"]
    assert substituted("${on}", variables) is True
    assert substituted("block.$block/${rate}x", variables) == "block.3/0.5x"
    assert substituted("$$block costs $$5, $$$block", variables) == "$block costs $5, $3"
    assert substituted({"a": ["$block", 7, {"b": "$rate"}]}, variables) == {"a": [3, 7, {"b": 0.5}]}
    assert substituted("100 $ and $", variables) == "100 $ and $"


def test_a_name_that_stands_for_nothing_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"names \$blok, but the variables here are: \$block.* Did you mean 'block'\?"):
        substituted("block.$blok", {"block": 3})
    with pytest.raises(UsageError, match="the variables here are: none"):
        substituted("$a", {})


def test_a_run_becomes_a_cell_for_each_combination_the_seed_last(model: Path, plugins: Plugins) -> None:
    cells = expanded(inverter(model), plugins)
    assert [cell.label for cell in cells] == [
        "inverter (site block.0, seed 0)",
        "inverter (site block.0, seed 1)",
        "inverter (site block.2, seed 0)",
        "inverter (site block.2, seed 1)",
    ]
    assert [
        (cell.resolved.config.seed, cell.resolved.options["gradient-inverter"].model_dump()["sites"]) for cell in cells
    ] == [
        (0, "block.0"),
        (1, "block.0"),
        (0, "block.2"),
        (1, "block.2"),
    ]


def test_anything_in_a_run_can_be_a_variable(model: Path, plugins: Plugins) -> None:
    values = {
        "title": "t",
        "parameters": {"where": str(model), "count": 2, "texts": ["one", "two"], "which": ["pretrained", "random"]},
        "runs": {
            "all": {
                "model": {"name": "$where", "weights": "$weights", "weights_seed": "$seed"},
                "plugins": "$plugins",
                "options": {"$$": "no"},
                "prompts": "$texts",
                "special_tokens": "$special",
                "seeds": "$count",
                "sweep": {"weights": "$which", "plugins": [["pseudo-inverse"]], "special": [True, False]},
            }
        },
    }
    values["runs"]["all"]["options"] = {}
    cells = expanded(values, plugins)
    assert len(cells) == 2 * 2 * 2
    config = cells[-1].resolved.config
    assert (config.model.name, config.model.weights, config.model.weights_seed) == (str(model), "random", 1)
    assert (config.plugins, config.prompts, config.special_tokens) == (["pseudo-inverse"], ["one", "two"], False)
    assert len(expanded(values, plugins, count=[7])) == 4


def test_input_ids_can_be_swept(model: Path, plugins: Plugins) -> None:
    values = inverter(model, input_ids="$ids", sweep={"ids": [[[1, 2]], [[3, 4, 5]]]}, seeds=1)
    del values["runs"]["inverter"]["prompts"]
    values["runs"]["inverter"]["options"]["sites"] = "block.0"
    assert [cell.resolved.config.input_ids for cell in expanded(values, plugins)] == [[[1, 2]], [[3, 4, 5]]]


def test_a_key_follows_from_the_configuration_alone(model: Path, plugins: Plugins) -> None:
    values = inverter(model)
    first = expanded(values, plugins)
    assert [cell.key for cell in expanded(values, Plugins())] == [cell.key for cell in first]
    assert len({cell.key for cell in first}) == 4
    assert all(re.fullmatch(r"[0-9a-f]{16}", cell.key) for cell in first)
    # Another name, and a default written out, are the same cell; another value is another.
    values["runs"]["again"] = inverter(model, sweep={"s": ["block.0"]}, seeds=[1])["runs"]["inverter"]
    values["runs"]["again"]["options"] = {"sites": "$s", "steps": 5, "restarts": 2, "next_token": False, "loss": "l1"}
    default = first[0].resolved.options["gradient-inverter"].model_dump()["loss"]
    values["runs"]["again"]["options"]["loss"] = default
    cells = expanded(values, plugins)
    assert cells[4].key == first[1].key
    values["runs"]["again"]["options"]["steps"] = 6
    assert expanded(values, plugins)[4].key not in {cell.key for cell in first}


def test_shares_are_all_the_cells_and_none_twice(model: Path, plugins: Plugins) -> None:
    values = inverter(model, seeds=5)
    values["runs"]["again"] = values["runs"]["inverter"]
    cells = expanded(values, plugins)
    keys = [{cell.key for cell in share(cells, (index, 3))} for index in (1, 2, 3)]
    assert set().union(*keys) == {cell.key for cell in cells}
    assert [len(each) for each in keys] == [4, 3, 3]


def wrong(**changes: Any) -> dict[str, Any]:
    run = {"model": "demo", "plugins": "pseudo-inverse", "options": {}} | changes
    return {"title": "t", "runs": {"a": run}}


def judged(**changes: Any) -> dict[str, Any]:
    """A study with one expectation, to be changed into a wrong one."""
    figure = {"run": "a", "metric": "m"} | changes.pop("figure", {})
    expectation = {"id": "e", "claim": "c", "figures": {"f": figure}, "verdicts": {"holds": "median(f) > 0"}}
    return wrong(plugins=["pseudo-inverse"]) | {"expectations": [expectation | changes]}


CHART = {"caption": "c", "figure": {"run": "a", "metric": "m"}, "x": "seed"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"runs": {"a": {"plugins": "p"}}}, "at 'title'"),
        ({"title": "t"}, "at 'runs'"),
        ({"title": "t", "runs": {}}, "at 'runs'"),
        (wrong() | {"color": 1}, "at 'color': extra"),
        (wrong(seed=1), "at 'runs.a.seed': extra"),
        (wrong(plugins=[]), r"at 'runs\.a\.plugins"),
        (wrong(plugins="psuedo-inverse"), "The run 'a' of the study: .*pseudo-inverse"),
        (wrong(options={"stepps": 1}), "The run 'a' of the study: .*stepps"),
        (wrong(model={"nmae": "x"}), "The run 'a' of the study: .*nmae"),
        (wrong(prompts=""), "The run 'a' of the study: A prompt is empty"),
        (wrong(prompts="$promt") | {"parameters": {"prompt": "x"}}, r"names \$promt.*Did you mean 'prompt'\?"),
        (wrong(seeds=0), r"The seeds of the run 'a' are \[\]"),
        (wrong(seeds=[-1]), "expected whole numbers from 0 on"),
        (wrong(seeds=["x"]), "at 'runs.a.seeds"),
        (wrong(seeds="$n") | {"parameters": {"n": "many"}}, "The seeds of the run 'a' are 'many'"),
        (wrong(seeds="$n") | {"parameters": {"n": True}}, "The seeds of the run 'a' are True"),
        (wrong() | {"parameters": {"y": "$z", "z": 3}}, "parameter 'y' can stand for those before it only: .*\\$z"),
        (wrong(sweep={"y": [1]}) | {"parameters": {"y": 3}}, "which is a parameter of the study; rename one"),
        (wrong(sweep={"seed": [5]}), "sweeps 'seed', which `seeds` does"),
        ({"title": "t", "runs": {"../a": {"plugins": "p"}}}, "is no name of a run"),
        (judged(figure={"run": "b"}), "is of the run 'b', but the runs are: a"),
        (judged(figure={"where": {"sede": 0}}), r"asks for 'sede'.*variables of 'a' are: seed.*Did you mean 'seed'"),
        (judged(figure={"where": {"seed": 7}}), "asks for seed = 7, which no cell of 'a' has"),
        (
            judged(figure={"analysis": "pseudo-invers"}),
            "has no analysis 'pseudo-invers'.*Did you mean 'pseudo-inverse'",
        ),
        (judged(figure={"metric": "$blok"}), r"names \$blok"),
        (judged(figure={"table": "t"}), "either a metric, or a table and a column"),
        (judged(figures={}), "has figures and verdicts, or the sentence `untested`"),
        (judged(figures={}, verdicts={}), "has figures and verdicts, or the sentence `untested`"),
        (judged(verdicts={}, untested="no"), "has figures and verdicts, or the sentence `untested`"),
        (judged(each="sede"), r"e is for each 'sede', but the variables of its runs are: seed.*Did you mean 'seed'\?"),
        (judged(figure={"missing": "many"}), "counts what is missing as 'many'; expected a number"),
        (judged(figure={"missing": True}), "at 'expectations.0.figures.f.missing.*valid"),
        (judged(follows={"hold": "x"}), "e says what follows from 'hold', but its verdicts are: holds, undecided"),
        (judged(follows={"holds": "{median(g)}"}), "The sentence of e, .*no figure 'g'"),
        (judged(figures={"no-name": {"run": "a", "metric": "m"}}), "'no-name' is no name of a figure"),
        (judged(figures={"and": {"run": "a", "metric": "m"}}), "'and' is no name of a figure"),
        (judged(verdicts={"holds": "median(g) > 0"}), "The rule 'holds' of e, .*no figure 'g'"),
        (judged(verdicts={"holds": "f.tofile('x')"}), "Attribute is not allowed"),
        (judged(because="{median(g)}"), "The sentence of e, .*no figure 'g'"),
        (judged(verdicts={"incomplete": "median(f) > 0"}), "a rule 'incomplete', which no rule decides"),
        (judged(expect="hold"), r"e expects 'hold', but its verdicts are: holds, undecided.*Did you mean 'holds'\?"),
        (judged() | {"expectations": judged()["expectations"] * 2}, "two expectations with the id 'e'"),
        (wrong() | {"charts": [CHART | {"figure": {"run": "b", "metric": "m"}}]}, "The chart 'c' is of the run 'b'"),
        (wrong() | {"charts": [CHART | {"x": "steps"}]}, "drawn over 'steps', but the variables are: seed"),
        (wrong() | {"charts": [CHART | {"series": "w"}]}, "drawn over 'w'"),
        (wrong() | {"charts": [CHART | {"each": "w"}]}, "is for each 'w'"),
        (judged() | {"charts": [CHART | {"beside": "f"}]}, "stands beside 'f', which is no id of an expectation"),
        (wrong(plugins=["pseudo-inverse", "gradient-inverter"]) | {"charts": [CHART]}, "several analyses; say which"),
    ],
)
def test_a_wrong_file_is_refused_with_a_sentence_before_anything_is_run(
    values: dict[str, Any], sentence: str, probekit_cli: Callable[..., Any]
) -> None:
    ended = probekit_cli("study", write(values), "--output", "out")
    assert ended.code in (2, 3)
    assert re.search(sentence, ended.sentence), ended.sentence
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"title = ", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"title = 't'\n[runs.a]\nplugins = 'pseudo-inverse'\n[runs.a]\n", "is not TOML"),
        (b"a = " + b"[" * 5000, "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_study_is_refused(content: bytes | None, sentence: str, probekit_cli: Callable[..., Any]) -> None:
    if content is not None:
        Path("s.toml").write_bytes(content)
    ended = probekit_cli("study", "s.toml")
    assert (ended.code, sentence in ended.sentence) == (2, True), ended.sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shard", "0/2"], "expected I/N"),
        (["--shard", "3/2"], "expected I/N"),
        (["--shard", "two"], "expected I/N"),
        (["--set", "steps"], "expected NAME=VALUE"),
        (["--set", "=1"], "expected NAME=VALUE"),
        (["--set", "modle=x"], "no parameter 'modle'; its parameters are: model. Did you mean 'model'?"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], sentence: str, probekit_cli: Callable[..., Any]) -> None:
    ended = probekit_cli("study", write(wrong() | {"parameters": {"model": "demo"}}), *arguments)
    assert (ended.code, sentence in ended.sentence) == (2, True), ended.sentence


def test_the_folder_of_something_else_is_refused(model: Path, plugins: Plugins) -> None:
    path = write(inverter(model))
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("file").write_text("mine")
    for folder, sentence in (("full", "holds no study"), ("file", "is no directory")):
        with pytest.raises(UsageError, match=sentence):
            study(path, folder, manager=plugins)
    Path("other").mkdir()
    Path("other/study.json").write_text('{"study": "other.toml", "title": "o"}')
    with pytest.raises(UsageError, match=r"holds the study 'other\.toml'"):
        study(path, "other", manager=plugins)
    assert sorted(contents(Path("full"))) == ["mine.txt"]
    assert sorted(contents(Path("other"))) == ["study.json"]


# What is found, and what it is judged to be


@pytest.fixture(scope="module")
def whole(model: Path, plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The four cells, carried out once."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = write(inverter(model) | {"expectations": [accuracy()]})
        outcome = study(path, "out", manager=plugins)
    outcome.path = folder / "out"
    return outcome


def judging(whole: Study, model: Path, plugins: Plugins, *expectations: dict[str, Any], **more: Any) -> Study:
    """Other expectations of the same cells: nothing is run, because they are there."""
    path = write(inverter(model) | {"expectations": list(expectations)} | more)
    listener = Recorder()
    outcome = study(path, whole.path, manager=plugins, listener=listener)
    assert listener.messages == []
    return outcome


def test_a_study_is_carried_out_and_judged(whole: Study) -> None:
    assert (whole.done, whole.failures, whole.missing, whole.passed) == (4, {}, 0, True)
    [judgement] = whole.judgements
    assert (judgement.verdict, judgement.met, judgement.because) == ("holds", True, "8 restarts.")
    assert judgement.cells == [cell.key for cell in whole.cells]
    expected = [row["token_accuracy"] for cell in whole.cells for row in whole.runs[cell.key].result.tables["restarts"]]
    assert judgement.figures["found"] == expected
    assert json.loads((whole.path / "verdicts.json").read_text())["in-range"]["figures"]["found"] == expected
    for cell in whole.cells:
        assert (whole.path / "cells" / cell.key / "report.html").is_file()


def test_figures_are_of_the_cells_and_rows_that_are_asked_for(whole: Study, model: Path, plugins: Plugins) -> None:
    base = {"run": "inverter"}
    by_site = {"metric": "$site/token_accuracy_mean", **base}
    found = judging(
        whole,
        model,
        plugins,
        accuracy(
            figures={
                "all": by_site,
                "deep": by_site | {"where": {"site": "block.2"}},
                "some": by_site | {"where": {"site": ["block.0", "block.2"], "seed": 1}},
                "first": base | {"table": "restarts", "column": "token_accuracy", "rows": {"restart": 0}},
                "own": base | {"table": "restarts", "column": "token_accuracy", "rows": {"site": "$site"}},
            },
            verdicts={"holds": "count(all) == 4"},
            because="",
        ),
    ).judgements[0]
    assert {name: len(each) for name, each in found.figures.items()} == {
        "all": 4,
        "deep": 2,
        "some": 2,
        "first": 4,
        "own": 8,
    }
    runs = [whole.runs[cell.key].result for cell in whole.cells]
    sites = ["block.0", "block.0", "block.2", "block.2"]
    metrics = [run.metrics[f"{site}/token_accuracy_mean"] for run, site in zip(runs, sites, strict=True)]
    assert found.figures["all"] == metrics
    assert found.figures["deep"] == metrics[2:]
    assert found.figures["some"] == metrics[1::2]


def test_verdicts_and_whether_they_are_those_expected(whole: Study, model: Path, plugins: Plugins) -> None:
    outcome = judging(
        whole,
        model,
        plugins,
        accuracy(),
        accuracy(id="wrong", expect="undecided"),
        accuracy(id="either", expect=["holds", "undecided"]),
        accuracy(id="open", expect=[]),
        accuracy(id="no-rule-true", verdicts={"holds": "least(found) > 2"}, expect=[]),
        {"id": "none", "claim": "c", "untested": "It needs a machine that is not there."},
    )
    assert {each.expectation.id: (each.verdict, each.met) for each in outcome.judgements} == {
        "in-range": ("holds", True),
        "wrong": ("holds", False),
        "either": ("holds", True),
        "open": ("holds", None),
        "no-rule-true": ("undecided", None),
        "none": ("not tested", None),
    }
    assert not outcome.passed
    report = outcome.report_path.read_text(encoding="utf-8")
    assert "It needs a machine that is not there." in report
    assert "Not as expected: wrong." in report
    [overview] = re.findall(r'<p class="finding">(Of .*?)</p>', report)
    assert overview.startswith("Of 6 claims, 4 hold; 1 came out in between or otherwise; 1 could not be judged. ")


RESTARTS = {"run": "inverter", "table": "restarts", "column": "token_accuracy"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"figures": {"found": {"run": "inverter", "metric": "block.0/token_acuracy"}}},
            r"There is no metric .*mean '",
        ),
        ({"figures": {"found": RESTARTS | {"table": "restart"}}}, r"no table 'restart'.*Did you mean 'restarts'\?"),
        (
            {"figures": {"found": RESTARTS | {"column": "token_acuracy"}}},
            r"no column .*Did you mean 'token_accuracy'\?",
        ),
        ({"figures": {"found": RESTARTS | {"rows": {"restrt": 0}}}}, r"no column 'restrt'.*Did you mean 'restart'\?"),
        ({"verdicts": {"holds": "found > 0"}}, "not true or false"),
        ({"verdicts": {"holds": "1 / (count(found) - 8) > 0"}}, "division by zero"),
        ({"because": "{found}"}, "not a number"),
    ],
)
def test_a_fault_that_only_the_results_show_fails_its_expectation_alone(
    whole: Study, model: Path, plugins: Plugins, change: dict[str, Any], sentence: str
) -> None:
    outcome = judging(whole, model, plugins, accuracy(**change), accuracy(id="sound"))
    faulty, sound = outcome.judgements
    assert (faulty.verdict, faulty.met, sound.verdict) == ("at fault", False, "holds")
    assert re.search(sentence, faulty.because), faulty.because
    assert not outcome.passed
    assert "at fault" in outcome.report_path.read_text(encoding="utf-8")


def test_rows_that_match_nothing_leave_the_expectation_incomplete(whole: Study, model: Path, plugins: Plugins) -> None:
    figures = {"found": RESTARTS, "none": RESTARTS | {"rows": {"restart": 99}}}
    [judgement] = judging(whole, model, plugins, accuracy(figures=figures)).judgements
    assert (judgement.verdict, judgement.met) == ("incomplete", None)
    assert judgement.because == "Not judged: no value for none."


# The command line


def test_exit_codes_and_the_json_document(model: Path, probekit_cli: Callable[..., Any]) -> None:
    values = inverter(model, seeds=1) | {"expectations": [accuracy()]}
    ended = probekit_cli("study", write(values), "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["study"] == str(Path("probekit-studies/small"))
    assert document["cells"] == {"done": 2, "failed": 0, "missing": 0}
    assert document["passed"] is True
    assert document["expectations"]["in-range"]["verdict"] == "holds"
    assert len(document["expectations"]["in-range"]["figures"]["found"]) == 4
    assert Path(document["report"]).is_file()
    assert "Cell 1 of 2: inverter (site block.0, seed 0)" in ended.err
    assert "Cell 2 of 2" in ended.err

    again = probekit_cli("study", write(values | {"expectations": [accuracy(expect="undecided")]}))
    assert again.code == 1
    assert "in-range: holds [NOT MET]  4 restarts." in again.out
    assert "Cells: 2 done, 0 failed, 0 missing" in again.out
    assert "Cell " not in again.err


def test_parameters_are_set_on_the_command_line(model: Path, probekit_cli: Callable[..., Any]) -> None:
    values = inverter(model, sweep={"site": "$sites"}, seeds=1) | {"parameters": {"sites": ["block.0"], "note": "x"}}
    ended = probekit_cli(
        "study", write(values), "--set", 'sites=["block.1", "block.2"]', "--set", "note=a b'c", "--json"
    )
    assert json.loads(ended.out)["cells"] == {"done": 2, "failed": 0, "missing": 0}
    report = Path("probekit-studies/small/summary.md").read_text(encoding="utf-8")
    assert "block.1" in report
    assert "--set" in report


# Going on


def test_a_second_call_repeats_nothing(model: Path, plugins: Plugins) -> None:
    path = write(inverter(model) | {"expectations": [accuracy()]})
    first = Recorder()
    study(path, "out", manager=plugins, listener=first)
    assert len(first.begun) == 4
    before = {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in Path("out/cells").rglob("*") if file.is_file()
    }
    everything = contents(Path("out"))
    second = Recorder()
    outcome = study(path, "out", manager=plugins, listener=second)
    assert (second.messages, second.seen, outcome.done) == ([], 0, 4)
    assert before == {
        file: (file.stat().st_mtime_ns, file.read_bytes()) for file in Path("out/cells").rglob("*") if file.is_file()
    }
    assert contents(Path("out")) == everything


def test_a_sweep_that_grows_runs_only_what_is_new(model: Path, plugins: Plugins) -> None:
    study(write(inverter(model, seeds=1)), "out", manager=plugins)
    listener = Recorder()
    outcome = study(write(inverter(model, seeds=2)), "out", manager=plugins, listener=listener)
    assert [text.split(": ")[1] for text in listener.begun] == [
        "inverter (site block.0, seed 1)",
        "inverter (site block.2, seed 1)",
    ]
    assert outcome.done == 4


def test_equal_cells_of_two_runs_are_run_once(model: Path, plugins: Plugins) -> None:
    values = inverter(model)
    values["runs"]["again"] = values["runs"]["inverter"]
    values["expectations"] = [accuracy(figures={"found": RESTARTS, "again": RESTARTS | {"run": "again"}})]
    listener = Recorder()
    outcome = study(write(values), "out", manager=plugins, listener=listener)
    assert (len(listener.begun), outcome.done, outcome.missing) == (4, 4, 0)
    [judgement] = outcome.judgements
    assert judgement.figures["found"] == judgement.figures["again"]


def test_shards_and_a_final_call_are_the_whole(model: Path, plugins: Plugins, whole: Study) -> None:
    path = write(inverter(model) | {"expectations": [accuracy()]})
    one = study(path, "out", shard=(1, 2), manager=plugins)
    assert (one.done, one.missing, one.passed) == (2, 2, True)
    assert (one.judgements[0].verdict, one.judgements[0].met) == ("incomplete", None)
    assert one.judgements[0].because == "Not judged: 2 of its cells are missing or failed."
    two = study(path, "out", shard=(2, 2), manager=plugins)
    assert (two.done, two.judgements[0].verdict) == (4, "holds")
    listener = Recorder()
    study(path, "out", manager=plugins, listener=listener)
    assert listener.messages == []
    study(path, "at once", manager=plugins)
    assert_same_cells(Path("out"), Path("at once"))
    assert (Path("out/report.html").read_bytes() == Path("at once/report.html").read_bytes()) is True


def test_shards_of_machines_without_a_shared_disk_are_copied_together(
    model: Path, plugins: Plugins, whole: Study
) -> None:
    path = write(inverter(model) | {"expectations": [accuracy()]})
    for index in (1, 2):
        study(path, f"machine-{index}", shard=(index, 2), manager=plugins)
    shutil.copytree("machine-2", "machine-1", dirs_exist_ok=True)
    listener = Recorder()
    outcome = study(path, "machine-1", manager=plugins, listener=listener)
    assert (listener.messages, outcome.done, outcome.passed) == ([], 4, True)
    assert outcome.judgements[0].figures == whole.judgements[0].figures


def assert_same_cells(found: Path, expected: Path) -> None:
    """The same bytes but for the paths of the cells' own folders, which nothing of them holds."""
    assert_same(found / "cells", expected / "cells")
    assert (found / "verdicts.json").read_bytes() == (expected / "verdicts.json").read_bytes()


@pytest.mark.parametrize("moment", [1, 8, 17])
def test_an_interrupt_leaves_a_report_and_going_on_gives_the_same_bytes(
    model: Path, plugins: Plugins, moment: int
) -> None:
    path = write(inverter(model) | {"expectations": [accuracy()]})
    study(path, "expected", manager=plugins)
    first = Recorder(moment, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        study(path, "out", manager=plugins, listener=first, seconds_between_saves=1000.0)
    assert first.seen == moment
    assert Path("out/report.html").is_file()
    assert json.loads(Path("out/verdicts.json").read_text())["in-range"]["verdict"] == "incomplete"

    second = Recorder()
    outcome = study(path, "out", manager=plugins, listener=second)
    assert len(first.begun) + len(second.begun) == 5, "only the cell that was interrupted is begun twice"
    assert (outcome.done, outcome.passed) == (4, True)
    assert_same(Path("out"), Path("expected"))
    counted = Recorder()
    study(path, "again", manager=plugins, listener=counted)
    assert first.seen + second.seen == counted.seen, "no step is repeated"


def test_an_interrupted_cell_is_missing_though_one_of_its_analyses_is_done(model: Path, plugins: Plugins) -> None:
    values = inverter(model, plugins=["pseudo-inverse", "gradient-inverter"], seeds=1, sweep={})
    values["runs"]["inverter"]["options"] = {"gradient-inverter.steps": 5}
    values["expectations"] = [
        accuracy(figures={"found": RESTARTS | {"analysis": "gradient-inverter"}}, because="{count(found)}")
    ]
    path = write(values)
    counted = Recorder()
    study(path, "expected", manager=plugins, listener=counted)
    with pytest.raises(KeyboardInterrupt):
        study(
            path,
            "out",
            manager=plugins,
            listener=Recorder(counted.seen - 1, lambda: signal.raise_signal(signal.SIGINT)),
        )
    [cell] = Path("out/cells").iterdir()
    analyses = json.loads((cell / "run.json").read_text())["analyses"]
    assert {name: each["status"] for name, each in analyses.items()} == {
        "pseudo-inverse": "done",
        "gradient-inverter": "interrupted",
    }
    assert "0 done, 0 failed, 1 missing" in Path("out/summary.md").read_text()
    assert json.loads(Path("out/verdicts.json").read_text())["in-range"]["verdict"] == "incomplete"
    study(path, "out", manager=plugins)
    assert_same(Path("out"), Path("expected"))


def test_an_interrupt_while_a_model_is_loaded_leaves_no_half_cell(
    model: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(inverter(model))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probekit.models.loading.load_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study(path, "out", manager=plugins)
    assert list(Path("out/cells").iterdir()) == []
    assert study(path, "out", manager=plugins).done == 4


def test_the_command_line_ends_with_130_when_interrupted(
    model: Path, probekit_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekit.cli.display import PlainLines

    shown = PlainLines.progress
    signs = Recorder(9, lambda: signal.raise_signal(signal.SIGINT))

    def progress(self: PlainLines, *arguments: Any) -> None:
        signs.progress(*arguments)
        shown(self, *arguments)

    path = write(inverter(model) | {"expectations": [accuracy()]})
    with monkeypatch.context() as patch:
        patch.setattr(PlainLines, "progress", progress)
        ended = probekit_cli("study", path, "--output", "out", "--json")
    assert (ended.code, ended.out) == (130, "")
    assert Path("out/report.html").is_file()
    assert probekit_cli("study", path, "--output", "out").code == 0


def killed_at(moments: Sequence[float | Callable[[], bool]], path: Path, folder: Path) -> int:
    """Carry out a study in a process that SIGKILL ends at each moment in turn, so many seconds after its start or as
    soon as something is so; then let it end.

    Returns how often the kill came before the study's end. No cell that was done is touched again.
    """
    command = [sys.executable, "-m", "probekit", "study", str(path), "--output", str(folder), "--save-every", "0.02"]
    kills = 0
    done: dict[Path, tuple[int, bytes]] = {}
    for moment in [*moments, 300.0]:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if moment() if callable(moment) else time.monotonic() - began > moment:
                process.kill()
                kills += 1
                break
            time.sleep(0.005)
        assert process.wait() in (0, -signal.SIGKILL)
        for manifest in (folder / "cells").glob("*/run.json"):
            if json.loads(manifest.read_text())["status"] == "done":
                found = (manifest.stat().st_mtime_ns, manifest.read_bytes())
                assert done.setdefault(manifest, found) == found
    return kills


def test_a_study_that_is_killed_goes_on_and_changes_no_figure(model: Path, plugins: Plugins) -> None:
    values = inverter(model) | {"expectations": [accuracy()]}
    values["runs"]["inverter"]["options"]["steps"] = 60
    path = write(values)
    assert killed_at([], path, Path("expected")) == 0
    begun = [lambda cells=cells: len(list(Path("out/cells").glob("*/run.json"))) >= cells for cells in (1, 2)]
    assert killed_at(begun, path, Path("out")) == 2
    assert_same(Path("out"), Path("expected"))


@pytest.mark.slow
def test_a_study_killed_at_random_moments_goes_on_and_changes_no_figure(model: Path, plugins: Plugins) -> None:
    values = inverter(model) | {"expectations": [accuracy()]}
    values["runs"]["inverter"]["options"]["steps"] = 60
    path = write(values)
    began = time.monotonic()
    assert killed_at([], path, Path("expected")) == 0
    duration = time.monotonic() - began
    moments = random.Random(0)
    kills = 0
    for number in range(10):
        kills += killed_at([moments.uniform(0, duration) for _ in range(2)], path, Path(f"out-{number}"))
        assert_same(Path(f"out-{number}"), Path("expected"))
    assert kills >= 5, "most of the kills came before the study's end"


def test_shards_may_run_at_the_same_time(model: Path, plugins: Plugins) -> None:
    path = write(inverter(model, seeds=3) | {"expectations": [accuracy()]})
    command = [sys.executable, "-m", "probekit", "study", str(path), "--output", "out", "--shard"]
    processes = [subprocess.Popen([*command, f"{index}/2"], stdout=subprocess.DEVNULL) for index in (1, 2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    listener = Recorder()
    outcome = study(path, "out", manager=plugins, listener=listener)
    assert (listener.messages, outcome.done, outcome.passed) == ([], 6, True)
    study(path, "expected", manager=plugins)
    assert_same(Path("out"), Path("expected"))


# Failures


def test_a_cell_that_fails_does_not_end_the_others(
    model: Path, plugins: Plugins, probekit_cli: Callable[..., Any]
) -> None:
    values = inverter(model, seeds=1, sweep={"site": ["block.7", "block.0"]})
    values["expectations"] = [
        accuracy(),
        accuracy(id="there", figures={"found": RESTARTS | {"where": {"site": "block.0"}}}),
    ]
    path = write(values)
    ended = probekit_cli("study", path, "--output", "out", "--json")
    assert ended.code == 1
    document = json.loads(ended.out)
    assert document["cells"] == {"done": 1, "failed": 1, "missing": 0}
    verdicts = {name: each["verdict"] for name, each in document["expectations"].items()}
    assert verdicts == {"in-range": "incomplete", "there": "holds"}
    assert list(document["failures"]) == ["inverter (site block.7, seed 0)"]
    assert "no site 'block.7'" in document["failures"]["inverter (site block.7, seed 0)"]
    assert "block.7" in Path("out/report.html").read_text(encoding="utf-8")
    assert "## Failed" in Path("out/summary.md").read_text(encoding="utf-8")

    plain = probekit_cli("study", path, "--output", "out")
    assert (plain.code, "Cells: 1 done, 1 failed" in plain.out) == (1, True)
    assert "  inverter (site block.7, seed 0): There is no site 'block.7'" in plain.err

    listener = Recorder()
    outcome = study(path, "out", manager=plugins, listener=listener)
    assert (listener.messages, outcome.done, len(outcome.failures)) == ([], 1, 1)
    listener = Recorder()
    study(path, "out", manager=plugins, listener=listener, retry_failed=True)
    assert [text.split(": ")[1] for text in listener.begun] == ["inverter (site block.7, seed 0)"]


def test_a_model_that_is_missing_fails_its_cells_and_is_tried_again(
    model: Path, plugins: Plugins, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    values = inverter(Path("$model"), seeds=1, sweep={"model": [str(late), str(model)]})
    values["runs"]["inverter"]["options"]["sites"] = "block.0"
    path = write(values)
    outcome = study(path, "out", manager=plugins)
    assert (outcome.done, len(outcome.failures)) == (1, 1)
    [(key, sentence)] = outcome.failures.items()
    assert "late" in sentence
    assert (Path("out/cells") / f"{key}.failed.json").is_file()
    late.symlink_to(model)
    assert study(path, "out", manager=plugins).failures == {key: sentence}
    again = study(path, "out", manager=plugins, retry_failed=True)
    assert (again.done, again.failures, again.passed) == (2, {}, True)
    assert not list(Path("out/cells").glob("*.failed.json"))


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), ProbekitError("A sentence."), SystemExit(3), MemoryError()]
)
def test_an_analysis_that_raises_fails_its_cell_alone(
    model: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from probekit_plugins.pseudo_inverse import PseudoInverse

    values = inverter(model, seeds=1, sweep={"site": ["block.0"]})
    values["runs"]["both"] = {"model": str(model), "plugins": ["pseudo-inverse", "orthogonal-walk"]}
    values["runs"]["both"]["options"] = {"orthogonal-walk": {"steps": 2, "walkers": 1}}
    walkers = {"run": "both", "analysis": "orthogonal-walk", "table": "walkers", "column": "r_over_noise_l2"}
    lens = {"run": "both", "analysis": "pseudo-inverse", "metric": "embedding_rank"}
    values["expectations"] = [
        accuracy(figures={"found": walkers}, verdicts={"holds": "count(found) > 0"}),
        accuracy(id="lens", figures={"found": lens}),
        accuracy(id="other"),
    ]
    path = write(values)

    def raising(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(PseudoInverse, "run", raising)
        outcome = study(path, "out", manager=plugins)
    assert (outcome.done, len(outcome.failures), outcome.missing) == (1, 1, 0)
    [sentence] = outcome.failures.values()
    assert sentence.startswith("pseudo-inverse: ")
    # What the failed cell found is used; what it did not find is not judged.
    assert [each.verdict for each in outcome.judgements] == ["holds", "incomplete", "holds"]
    assert study(path, "out", manager=plugins, listener=(listener := Recorder())).failures == outcome.failures
    assert listener.messages == []
    again = study(path, "out", manager=plugins, retry_failed=True)
    assert (again.done, again.failures) == (2, {})


def test_an_unforeseen_error_while_loading_fails_the_cell_and_keeps_its_traceback(
    model: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekit.models import loading

    load_model = loading.load_model
    loads = iter([RuntimeError("a broken file")])

    def load(*arguments: Any) -> Any:
        for error in loads:
            raise error
        return load_model(*arguments)

    monkeypatch.setattr(loading, "load_model", load)
    outcome = study(write(inverter(model, seeds=1)), "out", manager=plugins)
    assert outcome.done == 1
    [(key, sentence)] = outcome.failures.items()
    assert sentence == "RuntimeError: a broken file"
    assert "in load" in json.loads((Path("out/cells") / f"{key}.failed.json").read_text())["traceback"]


def test_a_damaged_cell_is_shown_and_the_others_are_judged(model: Path, plugins: Plugins) -> None:
    path = write(inverter(model, seeds=1) | {"expectations": [accuracy()]})
    outcome = study(path, "out", manager=plugins)
    (Path("out/cells") / outcome.cells[0].key / "run.json").write_text("{")
    outcome = study(path, "out", manager=plugins)
    assert (outcome.done, outcome.judgements[0].verdict) == (1, "incomplete")
    assert "is damaged" in outcome.failures[outcome.cells[0].key]


# The report


class Links(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name == "href" and tag == "a"]


def test_the_report_links_to_every_cell(model: Path, plugins: Plugins) -> None:
    chart = {"caption": "Accuracy", "figure": RESTARTS, "x": "seed", "series": "site", "y": "accuracy"}
    table = chart | {"caption": "By site", "x": "site", "series": "seed"}
    path = write(inverter(model) | {"expectations": [accuracy()], "charts": [chart, table]})
    outcome = study(path, "out", manager=plugins)
    links = [link for link in Links(outcome.report_path).found if not link.startswith("#")]
    assert links == [f"cells/{cell.key}/report.html" for cell in outcome.cells]
    assert all((outcome.path / link).is_file() for link in links)
    pages = json.loads(Path("out/page.json").read_text())["pages"]
    assert [page["title"] for page in pages] == ["Claims", "Runs"]
    assert [block["type"] for block in pages[0]["blocks"]].count("band") == 2
    assert "probekit study small.toml" in Path("out/summary.md").read_text()


def verdicts_on(**named: list[str]) -> list[Judgement]:
    """Judgements of claims by their ids, each with these verdicts."""
    return [
        Judgement(Expectation(id=name, claim=f"Claim {name}", untested="-"), verdict)
        for name, verdicts in named.items()
        for verdict in verdicts
    ]


@pytest.mark.parametrize(
    ("judgements", "sentence"),
    [
        (verdicts_on(a=["holds"]), "The claim holds."),
        (verdicts_on(a=["holds"], b=["reproduced", "holds"]), "All 2 claims hold."),
        (verdicts_on(a=["holds"], b=["refuted"]), "Of 2 claims, 1 holds; 1 does not hold (b)."),
        (
            verdicts_on(a=["refuted"], b=["fails", "fails"], c=["undecided"], d=["not tested"], e=["incomplete"]),
            "Of 5 claims, 0 hold; 2 do not hold (a, b); 1 came out in between or otherwise; 2 could not be judged.",
        ),
        (
            verdicts_on(a=["holds", "holds"], b=["holds", "refuted"], c=["partly", "refuted"]),
            "Of 3 claims, 1 holds on everything they were tested on; 1 only on some of it; 1 came out in between or "
            "otherwise.",
        ),
        (verdicts_on(a=["better"], b=["better"], c=["worse"]), "3 claims, with the verdicts better 2, worse 1."),
    ],
)
def test_one_sentence_says_how_many_claims_hold_and_which_do_not(judgements: list[Judgement], sentence: str) -> None:
    assert _in_short(judgements) == sentence


def test_each_verdict_leads_to_its_claim_on_the_page(whole: Study, model: Path, plugins: Plugins) -> None:
    outcome = judging(whole, model, plugins, accuracy(), accuracy(id="other", claim="Accuracy is a share"))
    report = outcome.report_path.read_text(encoding="utf-8")
    leads = re.findall(r'<td><a href="#([^"]*)">([^<]*)</a></td>', report)
    assert [name for _, name in leads] == ["in-range", "other"]
    for anchor, name in leads:
        assert f'<h3 id="{anchor}">{name}: Accuracy is a share</h3>' in report


def page_json(outcome: Study) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((outcome.path / "page.json").read_text())
    return document


def tables(outcome: Study, page: int = 0) -> list[dict[str, Any]]:
    blocks = page_json(outcome)["pages"][page]["blocks"]
    return [block for block in blocks if block["type"] == "table"]


def test_the_reasons_of_many_verdicts_stand_behind_a_table_of_verdicts_alone(
    whole: Study, model: Path, plugins: Plugins
) -> None:
    few = judging(whole, model, plugins, *(accuracy(id=f"c{number}") for number in range(2)))
    assert tables(few)[0]["columns"] == ["id", "verdict", "claim", "because"]
    many = judging(whole, model, plugins, *(accuracy(id=f"c{number}") for number in range(30)))
    first, second = tables(many)[:2]
    assert (first["columns"], first["collapsed"]) == (["id", "verdict", "claim"], False)
    assert (second["columns"], second["collapsed"]) == (["id", "verdict", "claim", "because"], True)
    summary = (many.path / "summary.md").read_text(encoding="utf-8")
    assert summary.count("8 restarts.") == 30
    assert summary.count("Accuracy is a share") == 30, "one table of the two"


def test_a_figure_says_what_it_is_of_and_each_quantity_has_an_axis_of_its_own(
    whole: Study, model: Path, plugins: Plugins
) -> None:
    rows = {"run": "inverter", "table": "restarts", "where": {"site": "block.0"}}
    figures = {
        "loss": rows | {"column": "loss", "missing": 9},
        "again": rows | {"column": "loss", "rows": {"restart": 0}},
        "accurate": rows | {"column": "token_accuracy"},
        "exact": rows | {"column": "exact"},
    }
    outcome = judging(
        whole, model, plugins, accuracy(figures=figures, verdicts={"holds": "count(loss) == 4"}, because="")
    )
    listed = tables(outcome)[1]
    assert [row[4] for row in listed["rows"]][:2] == [
        "loss of 'inverter' (site block.0), 9 where there is none",
        "loss of 'inverter' (site block.0, restart 0)",
    ]
    found = outcome.judgements[0].figures
    assert [row[1] for row in listed["rows"]] == [4, 2, 4, 4]
    assert float(listed["rows"][0][2]) == pytest.approx(sum(found["loss"]) / 4, rel=1e-2)
    blocks = page_json(outcome)["pages"][0]["blocks"]
    charts = [block["spec"] for block in blocks if block["type"] == "chart"]
    titles = [chart["encoding"]["x"]["axis"]["title"] for chart in charts]
    assert titles[0] == "loss"
    assert "exact" not in titles
    assert {point["figure"] for point in charts[0]["data"]["values"]} == {"loss", "again"}


def test_numbers_that_differ_by_orders_of_magnitude_are_drawn_at_even_spaces() -> None:
    assert _places([0.1, 0.001, 0.01, 0.1]) == {0.001: "0.001", 0.01: "0.01", 0.1: "0.1"}
    assert _places([300, 1000]) == {300: 300, 1000: 1000}
    assert _places([0, 1000]) == {0: 0, 1000: 1000}
    assert _places(["b", "a"]) == {"b": "b", "a": "a"}
    assert _places([1, "a", True]) == {1: "1", "a": "a"}


def test_the_words_of_the_file_for_its_reader_are_on_the_page(model: Path, plugins: Plugins) -> None:
    values = inverter(model, seeds=1, sweep={"site": ["block.0"]}, about="Two sites, once each.")
    values |= {"about": "Loss is in L1.", "parameters": {"short": "x", "many": [1, 2, 3, 4], "none": [], "deep": [[1]]}}
    outcome = study(write(values), "out", manager=plugins)
    pages = [[block.get("text") for block in page["blocks"]] for page in page_json(outcome)["pages"]]
    assert pages[0][:2] == ["How to read this", "Loss is in L1."]
    assert "Two sites, once each." in pages[1]
    head, rest = outcome.report_path.read_text(encoding="utf-8").split("</header>")
    assert re.findall("<dt>(.*?)</dt>", head) == ["short", "Runs"]
    assert {f"parameter {name}" for name in ("many", "none", "deep")} <= set(re.findall("<dt>(.*?)</dt>", rest))


def test_a_variable_of_tables_is_drawn_as_text(model: Path, plugins: Plugins) -> None:
    chart = {"caption": "By shape", "figure": RESTARTS, "x": "shape"}
    path = write(
        inverter(model, seeds=1, sweep={"shape": [{"a": 1}, [1, 2]], "site": ["block.0"]}) | {"charts": [chart]}
    )
    outcome = study(path, "out", manager=plugins)
    assert (outcome.done, outcome.missing) == (1, 0)
    assert "[1, 2]" in outcome.report_path.read_text(encoding="utf-8")


def test_hostile_and_long_texts_stay_text(model: Path, plugins: Plugins) -> None:
    long = "x" * 100_000
    values = inverter(model, seeds=1, sweep={"text": [HOSTILE], "site": ["block.0"]})
    values |= {"title": HOSTILE, "question": HOSTILE + long, "parameters": {HOSTILE: HOSTILE}}
    expectation = accuracy(id=HOSTILE, claim=HOSTILE + long, source=HOSTILE, test=HOSTILE)
    expectation |= {"verdicts": {HOSTILE: "count(found) > 0"}, "expect": HOSTILE}
    expectation["because"] = HOSTILE.replace("{", "{{").replace("}", "}}")
    values |= {"expectations": [expectation], "charts": [{"caption": HOSTILE, "figure": RESTARTS, "x": "text"}]}
    outcome = study(write(values), "out", manager=plugins)
    assert outcome.passed
    assert "img" not in Links(outcome.report_path).tags
    report = outcome.report_path.read_text(encoding="utf-8")
    assert "<script>window.ranHostile" not in report
    assert "{{ 7*7 }}" in report


def test_a_surrogate_from_the_command_line_is_a_sentence_or_is_shown(model: Path, plugins: Plugins) -> None:
    values = inverter(model, seeds=1, sweep={"site": ["block.0"]}) | {"parameters": {"note": "x"}}
    assert study(write(values), "out", manager=plugins, parameters={"note": "\udcff"}).passed
    values["runs"]["inverter"]["prompts"] = "$note"
    with pytest.raises(UsageError, match="not valid Unicode"):
        study(write(values), "out", manager=plugins, parameters={"note": "\udcff"})


# The files of this repository


@pytest.mark.parametrize("path", sorted((ROOT / "reports" / "studies").glob("*.toml")), ids=lambda path: path.name)
def test_the_studies_of_this_repository_can_be_carried_out(path: Path, plugins: Plugins) -> None:
    from probekit.runs.studies.judge import check_study

    file = read_study(path, {})
    assert isinstance(file, StudyFile)
    cells = expand(file, plugins)
    check_study(file, cells)
    assert cells


@pytest.mark.slow
def test_the_smoke_study_passes(probekit_cli: Callable[..., Any]) -> None:
    ended = probekit_cli("study", ROOT / "reports" / "studies" / "smoke.toml", "--json")
    document = json.loads(ended.out)
    assert (ended.code, document["passed"], document["cells"]["failed"]) == (0, True, 0), ended.err


@pytest.fixture
def guide() -> str:
    """The file that docs/studies.md prints, as printed."""
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    [content] = re.findall(r"```toml\n(# .*?)```", text, re.DOTALL)
    return content


def test_the_study_of_the_guide_works_as_printed(guide: str, probekit_cli: Callable[..., Any]) -> None:
    Path("depth.toml").write_text(guide, encoding="utf-8")
    ended = probekit_cli("study", "depth.toml", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["cells"] == {"done": 4, "failed": 0, "missing": 0}
    assert {each["met"] for each in document["expectations"].values()} == {True}
