"""Runs that share a model: it is loaded once, and no run sees what an earlier one did with it."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from torch import nn

import probekit
from probekit.models import loading
from probekit.models.spec import ModelSpec
from probekit.plugins import Plugins
from probekit.runs import execute, resolve
from probekit.runs.studies import study
from probekit.runs.subjects import Subjects
from tests.runs.folders import contents

INVERTER = {"plugins": ["gradient-inverter"], "options": {"sites": "block.0", "steps": 3, "next_token": False}}
OTHERS: list[dict[str, Any]] = [
    {"plugins": ["pseudo-inverse"]},
    {"plugins": ["activation-statistics"], "prompts": ["The sky is blue.", "Once upon a time"]},
]


class Spoiler:
    """A plugin with an analysis that changes whatever a run does not compare or put back, and two that fail."""

    def __init__(self) -> None:
        class Quiet(probekit.Analysis[probekit.Options]):
            """Changes the subject, its tokenizer and its facts, and ends well."""

            name = "quiet"

            def run(self, subject: Any, prompts: Any) -> probekit.Result:
                subject.tokenizer.padding_side = "left"
                subject.tokenizer.mine = "The"
                subject.facts["architecture"] = "Mine"
                subject.facts["more"] = [1]
                subject.embedding_matrix.add_(1) if subject.facts["dtype"] == "bfloat16" else None
                subject.tokens([1, 2, 3])
                subject._token_texts.update(dict.fromkeys(range(subject.vocabulary), "mine"))
                subject._reading.update(dict.fromkeys(subject.sites(), True))
                subject.own = "mine"
                subject.model.config.n_positions = 3
                return probekit.Result(finding="Nothing.", metrics={"done": 1})

            def report(self, result: probekit.Result, page: probekit.Page) -> None:
                page.prose("Nothing.")

        class Raising(Quiet):
            """Fails, with its traces put back."""

            name = "raising"

            def run(self, subject: Any, prompts: Any) -> probekit.Result:
                subject.model.config.n_positions = 3
                raise ValueError("no")

        class Writing(Quiet):
            """Writes into a weight."""

            name = "writing"

            def run(self, subject: Any, prompts: Any) -> probekit.Result:
                subject.model.get_input_embeddings().weight.data.mul_(1.5)
                return probekit.Result(finding="Nothing.", metrics={"done": 1})

        self._analyses = [Quiet, Raising, Writing]

    @probekit.hookimpl
    def probekit_analyses(self) -> Sequence[type]:
        return self._analyses


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    found = Plugins()
    assert found.register(Spoiler()).status == "loaded"
    return found


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models as they are loaded."""
    names: list[str] = []
    load = loading.load_model

    def counted(spec: ModelSpec, plugins: Plugins | None = None) -> loading.LoadedModel:
        names.append(spec.name)
        return load(spec, plugins)

    monkeypatch.setattr(loading, "load_model", counted)
    return names


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def carried_out(
    place: str, model: Any, runs: Sequence[dict[str, Any]], plugins: Plugins, subjects: Subjects | None
) -> list[dict[str, bytes]]:
    """The files of each run but its times."""
    found = []
    for number, values in enumerate(runs):
        folder = Path(place) / str(number)
        execute(resolve([("test", {"model": model, **values})], plugins), plugins, folder, subjects=subjects)
        found.append(contents(folder))
    return found


def assert_same(found: Sequence[dict[str, bytes]], expected: Sequence[dict[str, bytes]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert sorted(one) == sorted(other)
        assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"dtype": "bfloat16"},
        {"quantization": "int8"},
        {"weights": "random", "weights_seed": 3},
        {"depth": 2},
        {"device_map": {"transformer.wte": "cpu", "": "cpu"}},
    ],
    ids=lambda spec: next(iter(spec), "as it is"),
)
def test_runs_that_share_a_model_write_the_same_bytes_as_runs_that_load_it(
    tiny_gpt2: Callable[..., Path], plugins: Plugins, spec: dict[str, Any], loads: list[str]
) -> None:
    model = {"name": str(tiny_gpt2()), **spec}
    runs = [INVERTER, {"plugins": ["quiet"]}, INVERTER | {"prompts": ["the sea"]}, *OTHERS, INVERTER]
    alone = carried_out("alone", model, runs, plugins, None)
    loads.clear()
    shared = carried_out("shared", model, runs, plugins, Subjects())
    assert_same(shared, alone)
    assert len(loads) == 1


@pytest.mark.parametrize("bad", ["raising", "writing"])
def test_a_model_is_loaded_again_after_a_run_that_failed(
    tiny_gpt2: Callable[..., Path], plugins: Plugins, loads: list[str], bad: str
) -> None:
    model = str(tiny_gpt2())
    runs = [INVERTER, {"plugins": [bad]}, INVERTER, INVERTER]
    alone = carried_out("alone", model, runs, plugins, None)
    loads.clear()
    assert_same(carried_out("shared", model, runs, plugins, Subjects()), alone)
    assert len(loads) == 2


def test_another_field_of_the_spec_is_another_model_and_only_one_is_there_at_a_time(
    tiny_gpt2: Callable[..., Path], plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_gpt2())
    specs: list[dict[str, Any]] = [
        {"name": folder, "weights": "random"},
        {"name": folder, "weights": "random", "weights_seed": 1},
        {"name": folder},
        {"name": folder, "dtype": "float64"},
        {"name": folder},
    ]
    alone = [carried_out(f"alone-{n}", spec, [INVERTER], plugins, None)[0] for n, spec in enumerate(specs)]
    alive: list[weakref.ref[nn.Module]] = []
    load = loading.load_model

    def watched(spec: ModelSpec, plugins: Plugins | None = None) -> loading.LoadedModel:
        assert [model for model in alive if model() is not None] == []
        found = load(spec, plugins)
        alive.append(weakref.ref(found.model))
        return found

    monkeypatch.setattr(loading, "load_model", watched)
    subjects = Subjects()
    shared = [carried_out(f"shared-{n}", spec, [INVERTER], plugins, subjects)[0] for n, spec in enumerate(specs)]
    assert_same(shared, alone)
    assert len(alive) == 5
    assert alone[0] != alone[1]
    subjects.release()
    gc.collect()
    assert alive[-1]() is None


def test_a_model_whose_files_were_written_anew_is_loaded_again(
    tiny_gpt2: Callable[..., Path], plugins: Plugins, loads: list[str]
) -> None:
    shutil.copytree(tiny_gpt2(), "model")
    subjects = Subjects()
    carried_out("first", "./model", [INVERTER, INVERTER], plugins, subjects)
    assert len(loads) == 1
    Path("new.safetensors").write_bytes((tiny_gpt2(seed=1) / "model.safetensors").read_bytes())
    Path("new.safetensors").replace("model/model.safetensors")
    shared = carried_out("second", "./model", [INVERTER, INVERTER], plugins, subjects)
    assert len(loads) == 2
    assert_same(shared, carried_out("alone", "./model", [INVERTER, INVERTER], plugins, None))


def test_a_model_whose_tokenizer_cannot_be_copied_is_not_shared(
    tiny_gpt2: Callable[..., Path], plugins: Plugins, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Any, memo: Any) -> Any:
        raise TypeError("no")

    kind = type(probekit.load(str(tiny_gpt2())).tokenizer)
    loads.clear()
    monkeypatch.setattr(kind, "__deepcopy__", refused, raising=False)
    carried_out("runs", str(tiny_gpt2()), [INVERTER, INVERTER], plugins, Subjects())
    assert len(loads) == 2


def test_a_study_loads_each_model_once_whatever_its_order(
    tiny_gpt2: Callable[..., Path], plugins: Plugins, loads: list[str]
) -> None:
    run = {
        "model": {"name": str(tiny_gpt2()), "weights": "$weights"},
        "plugins": "gradient-inverter",
        "options": INVERTER["options"],
        "seeds": 2,
        "sweep": {"rate": [0.1, 0.2], "weights": ["pretrained", "random"]},
    }
    run["options"] = {**run["options"], "learning_rate": "$rate"}
    Path("s.toml").write_text(tomli_w.dumps({"title": "t", "runs": {"a": run}}), encoding="utf-8")
    messages: list[str] = []

    class Listener:
        def progress(self, *_: Any) -> None:
            pass

        def message(self, text: str) -> None:
            messages.append(text)

    outcome = study("s.toml", "out", manager=plugins, listener=Listener())
    assert (outcome.done, len(loads)) == (8, 2)
    assert ["pretrained" in text for text in messages] == [True] * 4 + [False] * 4
    for cell in outcome.cells:
        execute(cell.resolved, plugins, Path("alone") / cell.key)
    assert_same([contents(Path("out/cells"))], [contents(Path("alone"))])
