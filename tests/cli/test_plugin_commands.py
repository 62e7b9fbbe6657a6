"""Plugins on the command line: really installed ones, good and broken, and what they may not break."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probekit.runs import run

BROKEN = {
    "fails-to-import": "import no_such_module_anywhere",
    "is-no-python": "def broken(:",
    "ends-the-interpreter": "import sys; sys.exit(0)",
    "has-a-wrong-hook": "import probekit\n@probekit.hookimpl\ndef probekit_analysiss(): return []",
    "has-no-marker": "def probekit_analyses(): return []",
    "returns-junk": "import probekit\n@probekit.hookimpl\ndef probekit_analyses(): return [object]",
}

# A plugin that implements every hook, and writes down each call.
WHOLE = """
import json
from pathlib import Path

import click

import probekit


class SizeOptions(probekit.Options):
    factor: int = 2


class Size(probekit.Analysis[SizeOptions]):
    \"\"\"Counts the model's parameters.

    More about it.
    \"\"\"

    name = "size"

    def run(self, subject, prompts):
        count = sum(parameter.numel() for parameter in subject.model.parameters())
        return probekit.Result(finding=f"{count} parameters.", metrics={"parameters": count * self.options.factor})

    def report(self, result, page):
        page.prose(f"It has {result.metrics['parameters']} parameters.")


@probekit.hookimpl
def probekit_analyses():
    return [Size]


@probekit.hookimpl
def probekit_load_model(spec):
    if spec.name != "planet":
        return None
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=1, vocab_size=16, n_positions=8)), None


@probekit.hookimpl
def probekit_anatomy(model):
    return {"blocks": "transformer.h", "norm": None} if model.config.vocab_size == 16 else None


@probekit.hookimpl
def probekit_run_started(directory, configuration):
    known = {"files": sorted(path.name for path in directory.iterdir()), "seed": configuration["seed"]}
    (directory / "started.json").write_text(json.dumps(known))


@probekit.hookimpl
def probekit_run_finished(directory, status):
    known = {"files": sorted(path.name for path in directory.iterdir()), "status": status}
    (directory / "finished.json").write_text(json.dumps(known))


@click.command("weigh")
@click.option("--twice", is_flag=True)
def weigh(twice):
    "Weighs."
    click.echo("heavy " * (1 + twice))
    if twice:
        raise probekit.UsageError("Once is enough.")


@probekit.hookimpl
def probekit_commands():
    return [weigh]
"""


@pytest.fixture
def broken(install_plugin: Any) -> Path:
    folder = Path()
    for name, source in BROKEN.items():
        folder = install_plugin(name, source)
    return folder


def test_every_broken_plugin_is_listed_with_its_error_beside_the_good_ones(
    probekit_cli: Any, broken: Path, install_plugin: Any
) -> None:
    install_plugin("whole", WHOLE)
    ended = probekit_cli("plugins")
    assert ended.code == 0
    for name in BROKEN:
        assert f"\n{name}  [{name}-plugin 1.0]  failed: " in ended.out
        assert (
            f"\n    Leave it out with --block-plugin {name}, or uninstall it: pip uninstall {name}-plugin\n"
            in ended.out
        )
    for name in ("gradient-inverter", "pseudo-inverse"):
        assert f"{name}  [probekit 0.2.0]\n" in ended.out
    assert (
        "\nwhole  [whole-plugin 1.0]\n    size: Counts the model's parameters.\n    hooks: probekit_analyses, "
        in ended.out
    )
    listed = {entry["plugin"]: entry for entry in json.loads(probekit_cli("plugins", "list", "--json").out)}
    assert {name for name, entry in listed.items() if entry["status"] == "failed"} == set(BROKEN)
    assert "no_such_module_anywhere" in listed["fails-to-import"]["error"]
    assert listed["whole"] == {
        "plugin": "whole",
        "distribution": "whole-plugin",
        "version": "1.0",
        "status": "loaded",
        "error": "",
        "analyses": {"size": "Counts the model's parameters."},
        "hooks": listed["whole"]["hooks"],
    }
    assert {"probekit_analyses", "probekit_commands"} <= set(listed["whole"]["hooks"])


def test_the_command_line_works_with_broken_plugins_installed(
    probekit_process: Any, broken: Path, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    ended = probekit_process(
        "run", "--model", tiny_gpt2(), "-o", "steps=1", "--output", tmp_path / "run", "--json",
        environment={"PYTHONPATH": str(broken)},
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["status"] == "done"


def test_asking_for_a_plugin_that_failed_to_load_says_why(probekit_cli: Any, broken: Path, tmp_path: Path) -> None:
    for command in (["plugins", "show", "fails-to-import"], ["run", "--plugin", "fails-to-import", "--dry-run"]):
        ended = probekit_cli(*command)
        assert ended.code == 3
        assert "'fails-to-import' did not load" in ended.sentence
        assert "no_such_module_anywhere" in ended.sentence


def test_a_plugin_whose_metadata_is_damaged_is_listed(probekit_cli: Any, install_plugin: Any) -> None:
    folder = install_plugin("bare", "")
    (folder / "bare_plugin-1.0.dist-info" / "METADATA").unlink()
    ended = probekit_cli("plugins")
    assert ended.code == 0, ended.err
    assert "\nbare  [" in ended.out


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_blocked_plugin_is_listed_as_blocked_and_cannot_be_asked_for(
    way: str, probekit_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = ["--block-plugin", "pseudo-inverse"] if way == "option" else []
    if way == "variable":
        monkeypatch.setenv("PROBEKIT_BLOCK_PLUGINS", "pseudo-inverse")
    out = probekit_cli("plugins", *option).out
    assert "pseudo-inverse  [probekit 0.2.0]  blocked\n" in out
    assert "gradient-inverter  [probekit 0.2.0]\n" in out
    assert "It is blocked by --block-plugin or by PROBEKIT_BLOCK_PLUGINS" in out
    for command in (["plugins", *option, "show", "pseudo-inverse"], ["run", "--plugin", "pseudo-inverse", *option]):
        ended = probekit_cli(*command)
        assert ended.code == 2
        assert "'pseudo-inverse' is blocked" in ended.sentence


def test_a_blocked_plugin_stays_blocked_when_the_run_is_repeated(
    probekit_cli: Any, install_plugin: Any, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    install_plugin("broken-loader", "import probekit\n@probekit.hookimpl\ndef probekit_load_model(spec): return 1 / 0")
    run = ["run", "--model", tiny_gpt2(), "-o", "steps=1"]
    ended = probekit_cli(*run, "--output", tmp_path / "stopped")
    assert ended.code == 3
    assert "--block-plugin broken-loader" in ended.sentence
    assert not (tmp_path / "stopped").exists()
    assert probekit_cli(*run, "--block-plugin", "broken-loader", "--output", tmp_path / "a").code == 0
    assert probekit_cli("run", "--config", tmp_path / "a" / "config.toml", "--output", tmp_path / "b").code == 0


def test_a_listing_on_a_terminal_is_folded_and_marks_what_is_broken(
    probekit_cli: Any, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    shown = probekit_cli("plugins").out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b[31mfailed\x1b[0m" in shown
    assert max(map(len, plain.splitlines())) <= 70
    assert "fails-to-import  [fails-to-import-plugin 1.0]  failed:\n    did not import: ModuleNotFoundError" in plain


# --- the version -----------------------------------------------------------------------------------------------------


def test_the_version_names_the_plugins_of_others_without_importing_them(
    probekit_cli: Any, broken: Path, install_plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(sys.modules)
    assert "-plugin" not in probekit_cli("--version", "--help").out.splitlines()[0]
    install_plugin("whole", WHOLE)
    monkeypatch.setenv("PROBEKIT_BLOCK_PLUGINS", "whole, pseudo-inverse")
    ended = probekit_cli("--version")
    assert (ended.code, ended.err) == (0, "")
    first, *others = ended.out.splitlines()
    assert first == "probekit 0.2.0"
    assert others == sorted([*(f"{name}-plugin 1.0: {name}" for name in BROKEN), "whole-plugin 1.0: whole (blocked)"])
    assert not any(name.startswith("plugin_") for name in set(sys.modules) - before)


def test_damaged_metadata_do_not_hide_the_version(probekit_cli: Any, install_plugin: Any) -> None:
    folder = install_plugin("bare", "")
    (folder / "bare_plugin-1.0.dist-info" / "METADATA").unlink()
    ended = probekit_cli("--version")
    assert (ended.code, ended.out.splitlines()[0]) == (0, "probekit 0.2.0")
    assert ": bare\n" in ended.out


# --- each hook -------------------------------------------------------------------------------------------------------


def test_every_hook_of_an_installed_plugin_is_called(probekit_cli: Any, install_plugin: Any, tmp_path: Path) -> None:
    install_plugin("whole", WHOLE)
    output = tmp_path / "run"
    ended = probekit_cli(
        "run", "--model", "planet", "--input-ids", "1,2,3", "--plugin", "size", "-o", "factor=3", "--seed", "9",
        "--output", output, "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    parameters = json.loads(ended.out)["analyses"]["size"]["metrics"]["parameters"]
    assert parameters == 3 * sum([16 * 8, 8 * 8, 2 * (4 * 8 + 8 * 24 + 24 + 8 * 8 + 8 + 8 * 32 + 32 + 32 * 8 + 8), 16])
    manifest = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert manifest["model"]["source"] == "plugin"
    assert manifest["versions"]["whole-plugin"] == "1.0"
    started = json.loads((output / "started.json").read_text(encoding="utf-8"))
    assert started["seed"] == 9
    assert {"run.json", "config.toml"} <= set(started["files"])
    finished = json.loads((output / "finished.json").read_text(encoding="utf-8"))
    assert finished["status"] == "done"
    assert {"report.html", "summary.md", "analyses", "timings.json"} <= set(finished["files"])
    assert f"It has {parameters} parameters." in (output / "report.html").read_text(encoding="utf-8")


def test_a_declared_anatomy_is_the_one_that_counts(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin("whole", WHOLE)
    shown = json.loads(probekit_cli("models", "show", "planet", "--json").out)
    assert shown["anatomy"]["norm"] is None
    assert list(shown["sites"]) == ["embedding", "block.0", "block.1", "logits"]
    assert "norm" in json.loads(probekit_cli("models", "show", "demo", "--json").out)["sites"]


def test_a_plugins_command_is_found_by_its_name(probekit_cli: Any, install_plugin: Any) -> None:
    install_plugin("whole", WHOLE)
    assert probekit_cli("weigh").out == "heavy \n"
    assert "Weighs." in probekit_cli("weigh", "--help").out
    ended = probekit_cli("weigh", "--twice")
    assert (ended.code, ended.sentence) == (2, "Once is enough.")


def test_observers_are_told_of_a_run_that_came_to_nothing(
    probekit_cli: Any,
    install_plugin: Any,
    tiny_gpt2: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = """
import json, os
import probekit
@probekit.hookimpl
def probekit_run_started(directory, configuration, resumed):
    note(["started", directory.is_dir(), configuration["model"]["name"], resumed])
@probekit.hookimpl
def probekit_run_finished(directory, status, run):
    note(["finished", directory.is_dir(), status, run.failures])
def note(line):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(line) + "\\n")
"""
    install_plugin("noting", source)
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))

    def noted() -> list[Any]:
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        notes.unlink()
        return lines

    ended = probekit_cli("run", "--model", tmp_path / "nowhere", "--output", tmp_path / "none")
    assert ended.code == 4
    started, finished = noted()
    assert started == ["started", True, str(tmp_path / "nowhere"), False]
    assert finished == ["finished", True, "abandoned", {"run": ended.sentence}]
    assert not (tmp_path / "none").exists()

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["probekit.runs.execute"], "render", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny_gpt2(), ["pseudo-inverse"], output=tmp_path / "undrawn")
    assert noted()[1] == ["finished", True, "abandoned", {"run": "ZeroDivisionError: division by zero"}]
    assert probekit_cli("run", "--resume", tmp_path / "undrawn").code == 0
    started, finished = noted()
    assert started[3] is True
    assert finished[2:] == ["done", {}]


def test_observers_that_raise_do_not_end_a_run_and_are_named(
    probekit_cli: Any, install_plugin: Any, tiny_gpt2: Callable[..., Path], tmp_path: Path
) -> None:
    source = """
import probekit
@probekit.hookimpl
def probekit_run_started(directory, configuration): raise RuntimeError("no start")
@probekit.hookimpl
def probekit_run_finished(directory, status): raise SystemExit("no end")
"""
    install_plugin("sulking", source)
    install_plugin("whole", WHOLE)
    output = tmp_path / "run"
    ended = probekit_cli("run", "--model", tiny_gpt2(), "-o", "steps=1", "--output", output)
    assert ended.code == 0, ended.err
    for text in ("no start", "no end"):
        assert sum("'sulking'" in line and text in line for line in ended.err.splitlines()) == 1
    events = [json.loads(line) for line in (output / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ["no start" in events[0]["text"], "no end" in events[-1]["text"]] == [True, True]
    assert (output / "started.json").is_file()
    assert (output / "finished.json").is_file()


@pytest.mark.parametrize(
    "commands", ["raise RuntimeError('no commands')", "return 5", "return None", "return [5]", "return [None]"]
)
def test_broken_commands_of_a_plugin_leave_other_commands_alone(
    commands: str, probekit_cli: Any, install_plugin: Any
) -> None:
    install_plugin("aaa", f"import probekit\n@probekit.hookimpl\ndef probekit_commands(): {commands}")
    install_plugin("whole", WHOLE)
    install_plugin("zzz", f"import probekit\n@probekit.hookimpl\ndef probekit_commands(): {commands}")
    assert probekit_cli("weigh").code == 0
    ended = probekit_cli("nosuchcommand")
    assert ended.code == 2
    assert ended.sentence.startswith("No such command 'nosuchcommand'")
    if "RuntimeError" in commands:
        assert ended.err.count("no commands") == 2


def test_an_unknown_command_says_which_plugins_could_not_be_asked(probekit_cli: Any, broken: Path) -> None:
    ended = probekit_cli("nosuchcommand")
    assert ended.code == 2
    for name in BROKEN:
        assert f"'{name}'" in ended.err


# --- showing ---------------------------------------------------------------------------------------------------------


def test_showing_an_analysis_documents_every_option(probekit_cli: Any) -> None:
    from probekit import Plugins

    for name, analysis in Plugins().analyses().items():
        ended = probekit_cli("plugins", "show", name)
        assert ended.code == 0
        for option, field in analysis.options_model.model_fields.items():
            assert f"\n  {option} = " in ended.out
            assert field.description
            assert field.description in ended.out


def test_options_of_every_kind_can_be_shown(probekit_cli: Any, install_plugin: Any) -> None:
    source = """
from pathlib import Path
import probekit
from pydantic import Field

class AllOptions(probekit.Options):
    needed: int
    made: list[int] = Field(default_factory=lambda: [1, 2])
    place: Path = Path("some/where")
    word: str = "é"
    nothing: float | None = None

class All(probekit.Analysis[AllOptions]):
    name = "all-kinds"

@probekit.hookimpl
def probekit_analyses(): return [All]
"""
    install_plugin("all-kinds", source)
    out = probekit_cli("plugins", "show", "all-kinds").out
    assert "  needed = (required)  (whole number)\n" in out
    assert "  made = [1, 2]  (list of whole number)\n" in out
    assert '  place = "some/where"  (' in out
    assert '  word = "é"  (text)\n' in out
    assert "  nothing = null  (number | unset)\n" in out
    ended = probekit_cli("run", "--plugin", "all-kinds", "--dry-run")
    assert ended.code == 2
    assert "'needed'" in ended.sentence


def test_a_reader_that_has_gone_is_no_traceback(probekit_process: Any) -> None:
    code = (
        "import subprocess, sys; listing = subprocess.Popen([sys.executable, '-m', 'probekit', 'plugins'], "
        "stdout=subprocess.PIPE); listing.stdout.close(); sys.exit(listing.wait())"
    )
    ended = probekit_process(code=code)
    assert ended.code == 1
    assert ended.err == ""
