"""Models that a plugin's loader makes: what the loader says of them, what probekit says, and what is no answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit.errors import PluginError
from probekit.models import loading
from probekit.models.loading import state_hash

SHA256 = "0123456789abcdef" * 4


def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=16))


class Planets:
    """A loader that returns what it is told to for `planet`, and leaves every other name alone."""

    def __init__(self, returned: Callable[[], Any]) -> None:
        self._returned = returned

    @probekit.hookimpl
    def probekit_load_model(self, spec: probekit.ModelSpec) -> Any:
        return self._returned() if spec.name == "planet" else None


class Moons(Planets):
    """Another loader, which has to be named only for its own mistakes."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


def plugins_with(returned: Callable[[], Any]) -> probekit.Plugins:
    manager = probekit.Plugins(points=[])
    for plugin in (Planets(returned), Moons()):
        assert manager.register(plugin).status == "loaded"
    return manager


def load(facts: Any, **spec: Any) -> probekit.Subject:
    return probekit.load("planet", plugins=plugins_with(lambda: (network(), None, facts)), **spec)


def run(facts: Callable[[], Mapping[str, Any]], output: Path) -> probekit.Run:
    return probekit.run(
        "planet",
        "gradient-inverter",
        input_ids=[[1, 2, 3]],
        options={"steps": 2, "restarts": 1},
        output=output,
        manager=with_analyses(facts),
    )


def with_analyses(facts: Callable[[], Mapping[str, Any]]) -> probekit.Plugins:
    manager = probekit.Plugins()
    manager.register(Planets(lambda: (network(), None, facts())))
    return manager


# --- what is known of a model ----------------------------------------------------------------------------------------


def test_what_a_loader_says_of_its_model_is_known_of_the_subject() -> None:
    facts = load(MappingProxyType({"revision": "3f2", "weights_from": {"shelf": 4, "box": [1, None, True, 0.5]}})).facts
    assert facts["revision"] == "3f2"
    assert facts["weights_from"] == {"shelf": 4, "box": [1, None, True, 0.5]}


def test_a_loader_need_not_say_anything() -> None:
    pairs = probekit.load("planet", plugins=plugins_with(lambda: (network(), None))).facts
    empty = load({}).facts
    assert pairs == empty
    assert pairs["source"] == "plugin"
    assert pairs["tokenizer"].startswith("none (")


def test_what_probekit_measures_counts_whatever_a_loader_says_of_it() -> None:
    said = {
        "source": "hub",
        "architecture": "Sun",
        "dtype": "int3",
        "device": {"": "tpu"},
        "parameters": -1,
        "quantization": {"int8": 7},
        "quantised_share": 1.0,
        "has_weights": False,
        "checkpoint_dtype": "float8",
        "checkpoint_dtype_said_by": "an oracle",
    }
    facts = load(said).facts
    assert facts == load({}).facts
    assert (facts["source"], facts["architecture"]) == ("plugin", "GPT2LMHeadModel")
    assert (facts["dtype"], facts["device"]) == ("float32", "cpu")
    assert facts["parameters"] == sum(parameter.numel() for parameter in network().parameters())


def test_weights_that_the_loader_has_hashed_are_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}).facts["weights_sha256"] == state_hash(network())

    def no_need(model: nn.Module) -> str:
        raise AssertionError("hashed again")

    monkeypatch.setattr(loading, "state_hash", no_need)
    assert load({"weights_sha256": SHA256}).facts["weights_sha256"] == SHA256


def test_a_loader_may_say_why_there_is_no_tokenizer() -> None:
    assert load({"tokenizer": "none (planets do not speak)"}).facts["tokenizer"] == "none (planets do not speak)"


def test_facts_are_in_the_manifest_and_in_the_report(tmp_path: Path) -> None:
    made = run(lambda: {"revision": "3f2c", "<b>shelf</b>": "\x1b[31m\ud800 & \x00", "way": [1, 2]}, tmp_path / "run")
    assert made.status == "done"
    model = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["model"]
    assert (model["source"], model["revision"], model["way"]) == ("plugin", "3f2c", [1, 2])
    assert model["<b>shelf</b>"] == "\x1b[31m\ud800 & \x00"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "3f2c" in report
    assert "<b>shelf" not in report


def test_a_run_goes_on_with_the_same_facts_and_with_no_others(tmp_path: Path) -> None:
    """JSON has no tuples, and no numbers for names: what is read back has to be what a loader says again."""
    said: dict[str, Any] = {"way": (1, 2), "shelves": {4: "top"}}
    run(lambda: said, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "run.json").write_text(json.dumps({**manifest, "status": "interrupted"}), encoding="utf-8")
    assert probekit.resume(tmp_path / "run", with_analyses(lambda: said)).status == "done"

    (tmp_path / "run" / "run.json").write_text(json.dumps({**manifest, "status": "interrupted"}), encoding="utf-8")
    with pytest.raises(probekit.UsageError, match="'planet' is not the one that the run was begun with"):
        probekit.resume(tmp_path / "run", with_analyses(lambda: {**said, "revision": "another"}))


PLUGIN = """
import probekit

@probekit.hookimpl
def probekit_load_model(spec):
    if spec.name != "planet":
        return None
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=16))
    return RETURNED
"""


@pytest.mark.parametrize("load", [(), ("--load",)])
def test_models_show_has_the_revision_and_the_hash(
    load: tuple[str, ...], probekit_cli: Any, install_plugin: Any
) -> None:
    returned = f"model, None, {{'revision': '3f2c', 'weights_sha256': '{SHA256}', 'checkpoint_dtype': 'float16'}}"
    install_plugin("planets", PLUGIN.replace("RETURNED", returned))
    said = json.loads(probekit_cli("models", "show", "planet", "--json", *load).out)
    assert (said["source"], said["revision"], said["weights_sha256"]) == ("plugin", "3f2c", SHA256)
    assert (said["loaded"]["revision"], said["loaded"]["weights_sha256"]) == ("3f2c", SHA256)
    shown = " ".join(probekit_cli("models", "show", "planet", *load).out.split())
    assert "a plugin's loader, which has made the model, revision 3f2c" in shown
    assert f"SHA-256 {SHA256}" in shown


# --- what is no answer -----------------------------------------------------------------------------------------------

EXPECTED = "expected (model, tokenizer), (model, tokenizer, facts) or None."


class Endless(dict[str, Any]):
    """A mapping that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self["more"] = self


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (network, f"a GPT2LMHeadModel; {EXPECTED}"),
        (lambda: [network(), None], f"a list; {EXPECTED}"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), f"a Sequential; {EXPECTED}"),
        (lambda: False, f"a bool; {EXPECTED}"),
        (lambda: (), f"a tuple of 0; {EXPECTED}"),
        (lambda: (network(),), f"a tuple of 1; {EXPECTED}"),
        (lambda: (network(), None, {}, {}), f"a tuple of 4; {EXPECTED}"),
        (lambda: (None, None), "a NoneType as the model; expected a torch.nn.Module."),
        (lambda: (GPT2LMHeadModel, None, {}), "a type as the model; expected a torch.nn.Module."),
        (lambda: (nn.Identity(), None), "a Identity without parameters as the model; expected one that has weights."),
        (lambda: (network(), {"revision": "3f2"}), "a dict as the tokenizer; expected a tokenizer or None."),
        (lambda: (network(), "gpt2", {}), "a str as the tokenizer; expected a tokenizer or None."),
        (lambda: (network(), None, None), "a NoneType as the facts; expected a mapping from names to JSON types."),
        (lambda: (network(), None, [("revision", "3f2")]), "a list as the facts; expected a mapping"),
        (lambda: (network(), None, {"where": Path("shelf")}), "a fact 'where' that is not JSON (Object of type"),
        (lambda: (network(), None, {"loss": {"last": [float("nan")]}}), "a fact 'loss' that is not JSON (Out of range"),
        (lambda: (network(), None, {3: "moons"}), "a fact 3 that is not JSON (its name is a int)"),
        (lambda: (network(), None, {"parts": {(1, 2): "x"}}), "a fact 'parts' that is not JSON (keys must be"),
        (lambda: (network(), None, Endless()), "a fact 'more' that is not JSON ("),
        (lambda: (network(), None, {"weights_sha256": "3f2"}), "a fact 'weights_sha256' that is no SHA-256; expected"),
        (lambda: (network(), None, {"weights_sha256": None}), "a fact 'weights_sha256' that is no SHA-256; expected"),
    ],
)
def test_what_is_no_answer_is_a_sentence_that_names_the_plugin(returned: Callable[[], Any], sentence: str) -> None:
    begin = "The plugin 'Planets' failed in probekit_load_model (--block-plugin Planets leaves it out): it returned "
    with pytest.raises(PluginError, match=re.escape(begin + sentence)) as refused:
        probekit.load("planet", plugins=plugins_with(returned))
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("command", [("models", "show", "planet"), ("run", "--model", "planet", "--input-ids", "1,2")])
def test_the_command_line_says_whose_answer_it_is(
    command: tuple[str, ...], probekit_cli: Any, install_plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    install_plugin("planets", PLUGIN.replace("RETURNED", "model"))
    ended = probekit_cli(*command)
    assert ended.code == 3
    assert "The plugin 'planets' failed in probekit_load_model (--block-plugin planets" in ended.sentence
    assert not list(tmp_path.glob("probekit-runs/*"))
