"""`probekit run`: what it prints where, and what the options mean."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ["-o", "steps=5", "-o", "restarts=2"]
FIXED = ["result.json", "tensors.safetensors", "page.json", "options.json", "DONE"]


def manifest(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return document


def results(folder: Path) -> dict[str, bytes]:
    """Every saved byte of a run's analyses, by file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in (folder / "analyses").rglob("*.*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def model(tiny_gpt2: Callable[..., Path]) -> Path:
    return tiny_gpt2(n_positions=64)


# --- the main job ----------------------------------------------------------------------------------------------------


def test_without_a_model_or_plugin_it_inverts_a_block_of_the_embedded_model_and_says_where_the_report_is(
    probekit_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = probekit_cli("run", *SMALL)
    assert ended.code == 0, ended.err
    [folder] = (tmp_path / "probekit-runs").iterdir()
    assert ended.out.splitlines()[-1] == f"Report: {folder.relative_to(tmp_path) / 'report.html'}"
    assert ended.out.startswith("gradient-inverter: Gradient descent recovers ")
    document = manifest(folder)
    assert document["configuration"]["model"]["name"] == "demo"
    assert document["model"]["source"] == "demo"
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")


def test_two_runs_without_an_output_directory_get_one_each(
    probekit_cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert probekit_cli("run", "--model", model, *SMALL).code == 0
    assert len(list((tmp_path / "probekit-runs").iterdir())) == 2


def test_json_prints_one_document_of_the_documented_form_and_nothing_else(
    probekit_cli: Any, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    ended = probekit_cli("run", "--model", model, *SMALL, "--output", output, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    assert set(document) == {"run", "report", "status", "analyses"}
    assert document["run"] == str(output)
    assert document["report"] == str(output / "report.html")
    assert document["status"] == "done"
    [(name, analysis)] = document["analyses"].items()
    assert (name, analysis["status"]) == ("gradient-inverter", "done")
    saved = json.loads((output / "analyses" / name / "result.json").read_text(encoding="utf-8"))
    assert analysis["metrics"] == saved["metrics"]
    assert 0 <= analysis["metrics"]["block.0/token_accuracy_mean"] <= 1


def test_what_a_plugin_prints_does_not_get_into_the_json(
    probekit_cli: Any, model: Path, tmp_path: Path, install_plugin: Any
) -> None:
    install_plugin(
        "noisy",
        """
import probekit
print("imported")

class Noisy(probekit.Analysis[probekit.Options]):
    name = "noisy"
    def run(self, subject, prompts):
        print("running")
        return probekit.Result(metrics={"one": 1})
    def report(self, result, page):
        print("reporting")

@probekit.hookimpl
def probekit_analyses():
    print("asked")
    return [Noisy]
""",
    )
    ended = probekit_cli("run", "--model", model, "--plugin", "noisy", "--output", tmp_path / "run", "--json")
    assert json.loads(ended.out)["analyses"] == {"noisy": {"status": "done", "metrics": {"one": 1}}}
    assert "running" in ended.err
    assert isinstance(json.loads(probekit_cli("plugins", "list", "--json").out), list)
    assert json.loads(probekit_cli("run", "--dry-run", "--json").out)["configuration"]["seed"] == 0


def test_several_analyses_each_take_their_own_options(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    ended = probekit_cli(
        "run", "--model", model, "--plugin", "pseudo-inverse", "--plugin", "gradient-inverter",
        "-o", "gradient-inverter.steps=3", "-o", "gradient-inverter.restarts=4", "-o", "pseudo-inverse.top_k=2",
        "-o", "gradient-inverter.top_k=3", "--output", output, "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert list(json.loads(ended.out)["analyses"]) == ["pseudo-inverse", "gradient-inverter"]
    options = {
        name: json.loads((output / "analyses" / name / "options.json").read_text(encoding="utf-8"))
        for name in ("pseudo-inverse", "gradient-inverter")
    }
    assert options["pseudo-inverse"]["top_k"] == 2
    assert (options["gradient-inverter"]["top_k"], options["gradient-inverter"]["steps"]) == (3, 3)
    inverted = json.loads((output / "analyses/gradient-inverter/result.json").read_text(encoding="utf-8"))
    assert len(inverted["tables"]["restarts"]) == 4
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.index("pseudo-inverse") < page.index("gradient-inverter")


# --- prompts ---------------------------------------------------------------------------------------------------------


def prompts_of(ended: Any) -> tuple[list[str], list[list[int]]]:
    configuration = json.loads(ended.out)["configuration"]
    return configuration["prompts"], configuration["input_ids"]


def test_prompts_come_from_options_files_and_ids_together(probekit_cli: Any, tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("third\n\n  \n fourth \r\n", encoding="utf-8")
    ended = probekit_cli(
        "run", "--dry-run", "--json", "--prompt", "first", "--prompt", " second", "--prompts", text,
        "--input-ids", "1,2,3", "--input-ids", "[4, 5]", "--input-ids", "6 7",
    )  # fmt: skip
    assert prompts_of(ended) == (["first", " second", "third", " fourth "], [[1, 2, 3], [4, 5], [6, 7]])


def test_prompts_of_every_form_come_from_a_jsonl_file(probekit_cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        '"one\\ntwo"',
        '{"prompt": "two", "id": 7}',
        '{"text": "three\u2028four"}',
        '{"input_ids": [1, 2]}',
        "[3]",
        "",
    ]
    file.write_text("\n".join(rows), encoding="utf-8")
    ended = probekit_cli("run", "--dry-run", "--json", "--prompts", file)
    assert prompts_of(ended) == (["one\ntwo", "two", "three\u2028four"], [[1, 2], [3]])


def test_only_line_ends_part_the_prompts_of_a_text_file(probekit_cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa\u2028b\x0cc\x85d\r\ne\n", encoding="utf-8", newline="")
    assert prompts_of(probekit_cli("run", "--dry-run", "--json", "--prompts", file))[0] == ["a\u2028b\x0cc\x85d", "e"]


def test_ids_mean_the_same_tokens_as_their_text(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)("The sky is blue.")["input_ids"]
    by_text, by_ids = tmp_path / "text", tmp_path / "ids"
    common = ["run", "--model", model, *SMALL]
    assert probekit_cli(*common, "--prompt", "The sky is blue.", "--output", by_text).code == 0
    assert probekit_cli(*common, "--input-ids", ",".join(map(str, ids)), "--output", by_ids).code == 0
    assert results(by_text) == results(by_ids)
    assert manifest(by_text)["prompts"] == manifest(by_ids)["prompts"]


@pytest.mark.data
def test_special_tokens_are_added_unless_switched_off(probekit_cli: Any, data_folder: Path, tmp_path: Path) -> None:
    tokens = {}
    for flag in ("--special-tokens", "--no-special-tokens"):
        output = tmp_path / flag
        ended = probekit_cli("run", "--model", data_folder / "models/stories260k", flag, *SMALL, "--output", output)
        assert ended.code == 0, ended.err
        tokens[flag] = manifest(output)["prompts"][0]["tokens"]
    assert tokens["--special-tokens"][0] == "<s>"
    assert tokens["--special-tokens"][1:] == tokens["--no-special-tokens"]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("steps=7", {"steps": 7}),
        ("steps=1_000", {"steps": 1000}),
        ("learning_rate=1e-3", {"learning_rate": 0.001}),
        ("loss=l2", {"loss": "l2"}),
        ('loss="l2"', {"loss": "l2"}),
        ("loss='l2'", {"loss": "l2"}),
        ("sites=block.0:6:2", {"sites": "block.0:6:2"}),
        ('sites=["block.0", "norm"]', {"sites": "block.0,norm"}),
        ("sites=a=b", {"sites": "a=b"}),
        ("sites=1\nseed = 2", {"sites": "1\nseed = 2"}),
    ],
)
def test_an_options_value_is_toml_else_text(probekit_cli: Any, text: str, value: dict[str, Any]) -> None:
    ended = probekit_cli("run", "--dry-run", "--json", "-o", text)
    assert ended.code == 0, ended.err
    options = json.loads(ended.out)["configuration"]["options"]["gradient-inverter"]
    assert options | value == options


def test_a_dry_run_names_the_source_of_each_value_and_makes_nothing(
    probekit_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "settings.toml"
    config.write_text('seed = 4\n[model]\nname = "elsewhere"\ndtype = "float64"\n[options]\nsteps = 9\ntop_k = 2\n')
    ended = probekit_cli("run", "--dry-run", "--config", "settings.toml", "--dtype", "bfloat16", "-o", "top_k=3")
    assert ended.code == 0
    shown = dict(line.split(" = ", 1) for line in ended.out.splitlines())
    assert shown["seed"] == "4  # settings.toml"
    assert shown["model.name"] == '"elsewhere"  # settings.toml'
    assert shown["model.dtype"] == '"bfloat16"  # command line'
    assert shown["options.gradient-inverter.steps"] == "9  # settings.toml"
    assert shown["options.gradient-inverter.top_k"] == "3  # command line"
    assert shown["options.gradient-inverter.restarts"] == "8  # default"
    assert shown["plugins"].endswith("# default")
    assert shown["prompts"] == '["The sky is blue."]  # default'
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


def test_a_dry_run_as_json_says_the_same(probekit_cli: Any) -> None:
    document = json.loads(probekit_cli("run", "--dry-run", "--json", "--seed", "3", "-o", "steps=9").out)
    assert document["sources"] == {"seed": "command line", "options.gradient-inverter.steps": "command line"}
    assert document["configuration"]["seed"] == 3
    assert document["configuration"]["options"]["gradient-inverter"]["restarts"] == 8


def test_prompts_given_on_the_command_line_replace_those_of_a_configuration(probekit_cli: Any, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('prompts = ["from the file"]\ninput_ids = [[1, 2]]\n')
    assert prompts_of(probekit_cli("run", "--dry-run", "--json", "--config", config)) == (["from the file"], [[1, 2]])
    given = ["run", "--dry-run", "--json", "--config", config]
    assert prompts_of(probekit_cli(*given, "--prompt", "mine")) == (["mine"], [])
    assert prompts_of(probekit_cli(*given, "--input-ids", "3")) == ([], [[3]])


def test_a_configuration_may_name_its_model_in_one_word(probekit_cli: Any, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('model = "gpt2-xl"\n')
    shown = json.loads(probekit_cli("run", "--dry-run", "--json", "--config", config, "--dtype", "float16").out)
    assert (shown["configuration"]["model"]["name"], shown["configuration"]["model"]["dtype"]) == ("gpt2-xl", "float16")


def test_memory_by_device_is_a_number_for_a_device_that_is_one(probekit_cli: Any) -> None:
    from probekit.models.spec import ModelSpec

    ended = probekit_cli("run", "--dry-run", "--json", "--device-map", "auto", "--max-memory", "0=10GiB,cpu=30GiB")
    assert json.loads(ended.out)["configuration"]["model"]["max_memory"] == {"0": "10GiB", "cpu": "30GiB"}
    # accelerate knows a graphics card by its number only; JSON and TOML have keys of text only.
    assert ModelSpec(device_map="auto", max_memory={"0": "10GiB"}).max_memory == {0: "10GiB"}
    assert ModelSpec(device_map={"": "0"}).device_map == {"": 0}


# --- repeating -------------------------------------------------------------------------------------------------------


def test_the_config_of_a_run_repeats_it_byte_for_byte(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert probekit_cli("run", "--model", model, *SMALL, "--seed", "5", "--prompt", "a\tb", "--output", first).code == 0
    assert probekit_cli("run", "--config", first / "config.toml", "--output", second).code == 0
    assert results(first) == results(second)
    assert (first / "config.toml").read_bytes() == (second / "config.toml").read_bytes()
    assert (first / "report.html").read_bytes() == (second / "report.html").read_bytes()


def test_the_command_of_a_run_repeats_it_byte_for_byte(probekit_cli: Any, model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    prompts = ["$HOME `id` 'quoted' \"twice\" \\ 100%", "-o", "two\nlines", "ж 🐎"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    ended = probekit_cli(
        "run", "--model", model, "--plugin", "gradient-inverter", "--plugin", "pseudo-inverse",
        "-o", "gradient-inverter.steps=3", "-o", "gradient-inverter.restarts=2",
        "-o", "pseudo-inverse.decoders=['cosine']",
        "-o", "gradient-inverter.learning_rate=1e-05", "-o", "pseudo-inverse.margins=false", "--seed", "11",
        "--no-special-tokens", *words, "--input-ids", "1,2",
        "--weights", "random", "--weights-seed", "3", "--depth", "2",
        "--dtype", "float64", "--block-plugin", "other", "--output", first,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    command = manifest(first)["command"]
    assert f"{command} --output" not in command
    again = shlex.split(command)
    assert again[0] == "probekit"
    assert probekit_cli(*again[1:], "--output", second).code == 0
    assert results(first) == results(second)
    assert manifest(first)["configuration"] == manifest(second)["configuration"]


def test_the_command_of_a_run_is_one_that_a_shell_executes(
    probekit_cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import subprocess
    import sys

    first, second = tmp_path / "first", tmp_path / "second"
    assert probekit_cli("run", "--model", model, *SMALL, "--prompt", "it's $5 & more", "--output", first).code == 0
    root = Path(__file__).resolve().parents[2]
    program = tmp_path / "bin" / "probekit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m probekit "$@"\n')
    program.chmod(0o755)
    subprocess.run(
        ["sh", "-c", f'{manifest(first)["command"]} --output "$1"', "sh", str(second)],
        env=os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)},
        check=True,
        capture_output=True,
    )
    assert results(first) == results(second)


def test_text_that_looks_like_another_value_stays_text_in_config_and_command(
    probekit_cli: Any, model: Path, tmp_path: Path, install_plugin: Any
) -> None:
    install_plugin(
        "labelled",
        """
import probekit

class LabelledOptions(probekit.Options):
    label: str = ""
    labels: list[str] = []
    pairs: dict[str, float] = {}

class Labelled(probekit.Analysis[LabelledOptions]):
    name = "labelled"
    def run(self, subject, prompts):
        return probekit.Result(metrics={"label": self.options.label, "pairs": str(self.options.pairs)})
    def report(self, result, page):
        page.prose(result.metrics["label"])

@probekit.hookimpl
def probekit_analyses():
    return [Labelled]
""",
    )
    for number, label in enumerate(["5", "true", "2024-01-01", '"quoted"', "[1]", "a\nb", "\x7f\\", "nan", "", " x"]):
        first, second, third = (tmp_path / f"{number}{letter}" for letter in "abc")
        quoted = json.dumps(label, ensure_ascii=False).replace("\x7f", "\\u007f")
        ended = probekit_cli(
            "run", "--model", model, "--plugin", "labelled", "-o", f"label={quoted}",
            "-o", 'labels=["1", "b"]', "-o", 'pairs={a = 1.5, "b c" = 2}', "--output", first,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert probekit_cli(*shlex.split(manifest(first)["command"])[1:], "--output", second).code == 0
        assert probekit_cli("run", "--config", first / "config.toml", "--output", third).code == 0
        saved = json.loads((first / "analyses/labelled/options.json").read_text(encoding="utf-8"))
        assert saved == {"label": label, "labels": ["1", "b"], "pairs": {"a": 1.5, "b c": 2.0}}
        assert results(first) == results(second) == results(third)
