"""The public API: every name is there, importing it is cheap, and bad input gives the command line's sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import probekit
from probekit.errors import ModelError, PluginError, UsageError


def test_importing_probekit_imports_neither_torch_nor_transformers_nor_a_plugin(probekit_process: Any) -> None:
    code = (
        "import sys, probekit; "
        "probekit.Plugins, probekit.Options, probekit.Analysis, probekit.Page, probekit.ModelSpec; "
        "print(*{name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'probekit_plugins', 'numpy'})"
    )
    ended = probekit_process(code=code)
    assert (ended.code, ended.out, ended.err) == (0, "\n", "")


def test_every_public_name_is_there_and_listed() -> None:
    assert len(set(probekit.__all__)) == len(probekit.__all__)
    for name in probekit.__all__:
        assert getattr(probekit, name) is not None
    assert set(probekit.__all__) <= set(dir(probekit))
    namespace: dict[str, Any] = {}
    exec("from probekit import *", namespace)
    assert set(probekit.__all__) <= set(namespace)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        probekit.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": "./nowhere"}, ModelError, r"There is no folder './nowhere'"),
        ({"model": {"name": "demo", "dtype": "int4"}}, UsageError, r"'model.dtype' is 'int4'"),
        ({"model": {"nam": "demo"}}, UsageError, r"unknown key 'model.nam'.*Did you mean 'name'"),
        ({"model": 5}, UsageError, r"'model' is 5"),
        ({"plugins": ["gradient-invertr"]}, UsageError, r"Did you mean 'gradient-inverter'"),
        ({"plugins": []}, UsageError, r"'plugins'"),
        ({"options": {"stps": 5}}, UsageError, r"no option 'stps'.*Did you mean 'steps'"),
        ({"options": {"steps": "many"}}, UsageError, r"'steps' of gradient-inverter is 'many'"),
        ({"options": {"pseudo-inverse": {"top_k": 2}}}, UsageError, r"no analysis of this run"),
        ({"prompts": [""]}, UsageError, r"prompt is empty"),
        ({"prompts": [5]}, UsageError, r"'prompts.0' is 5"),
        ({"prompts": ["\ud800"]}, UsageError, r"surrogate"),
        ({"input_ids": [[-1]]}, UsageError, r"-1 is outside the vocabulary"),
        ({"input_ids": [[]]}, UsageError, r"no tokens"),
        ({"seed": -1}, UsageError, r"'seed' is -1"),
    ],
    ids=str,
)
def test_bad_input_raises_one_sentence_and_leaves_nothing(
    arguments: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as raised:
        probekit.run(**arguments, output=tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("./nowhere", {}, ModelError, "There is no folder './nowhere'"),
        ("demo", {"dtyp": "float32"}, UsageError, "no option 'dtyp'.*Did you mean 'dtype'"),
        ("demo", {"dtype": "int4"}, UsageError, "'dtype' is 'int4'; expected 'auto', 'float64'"),
        ("demo", {"depth": 0}, UsageError, "'depth' is 0"),
        ("", {}, UsageError, "'name' is ''"),
    ],
)
def test_loading_what_cannot_be_loaded_raises_one_sentence(
    name: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        probekit.load(name, **options)
    assert "\n" not in str(raised.value)


def test_a_model_is_loaded_from_a_path_as_from_its_name(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    assert len(probekit.load(tiny_gpt2()).anatomy.blocks) == 3
    assert probekit.run(model=tiny_gpt2(), options={"steps": 1}, output=tmp_path / "run").status == "done"


def test_a_single_prompt_and_plugin_may_be_given_as_words(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run = probekit.run(
        model=str(tiny_gpt2()),
        plugins="gradient-inverter",
        prompts="abc",
        options={"steps": 1},
        output=tmp_path / "run",
    )
    assert [sequence.tokens for sequence in run.result.sequences["prompt"]] == [["a", "b", "c"]]


def test_a_run_with_several_results_has_no_single_one(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    run = probekit.run(
        model=str(tiny_gpt2()),
        plugins=["gradient-inverter", "pseudo-inverse"],
        options={"gradient-inverter.steps": 1},
        output=tmp_path / "run",
    )
    assert set(run.results) == {"gradient-inverter", "pseudo-inverse"}
    with pytest.raises(UsageError, match="2 results"):
        _ = run.result


def test_a_manager_of_ones_own_is_the_one_that_is_used(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> None:
    class Mine(probekit.Analysis[probekit.Options]):
        name = "mine"

        def run(self, subject: Any, prompts: Any) -> probekit.Result:
            return probekit.Result(metrics={"blocks": len(subject.anatomy.blocks)})

        def report(self, result: probekit.Result, page: probekit.Page) -> None:
            page.prose(f"{result.metrics['blocks']} blocks")

    class Plugin:
        @probekit.hookimpl
        def probekit_analyses(self) -> list[type]:
            return [Mine]

    manager = probekit.Plugins(points=[])
    manager.register(Plugin())
    run = probekit.run(model=str(tiny_gpt2()), plugins=["mine"], manager=manager, output=tmp_path / "run")
    assert run.result.metrics == {"blocks": 3}
    with pytest.raises((UsageError, PluginError), match="mine"):
        probekit.run(model=str(tiny_gpt2()), plugins=["mine"], output=tmp_path / "other")
