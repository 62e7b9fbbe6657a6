"""What the documentation says is true of the code."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import probekit
from probekit import hookspecs, testing
from probekit.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_api_page_has_every_public_name_once() -> None:
    documented = re.findall(r"^```\{public-api\} (\w+)$", read("docs/api.md"), re.MULTILINE)
    assert sorted(documented) == sorted(probekit.__all__)


def bundled_analyses() -> dict[str, type[probekit.Analysis[Any]]]:
    """Every analysis that probekit itself provides, by name."""
    analyses = [analysis for record in probekit.Plugins().records for analysis in record.analyses]
    return {each.name: each for each in analyses if each.__module__.startswith("probekit_plugins.")}


def commands(group: click.Group = cli, prefix: str = "probekit") -> Iterator[tuple[str, click.Command]]:
    """Every command of probekit's own and its name, `probekit models show`, groups before what is in them."""
    context = click.Context(group)
    for name in COMMANDS if group is cli else group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


def built(directive: str, folder: Path) -> str:
    """What a directive of docs/_ext comes to on a page of its own, as plain text. Fails on a warning of Sphinx."""
    pytest.importorskip("sphinx", reason="the documentation's packages are not installed")
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'docs' / '_ext')!r})\n"
        f"extensions = ['myst_parser', {directive.replace('-', '_')!r}]\n"
        "myst_disable_syntax = ['html_block', 'html_inline']\n"
    )
    (folder / "index.md").write_text(f"# Reference\n\n```{{{directive}}}\n```\n")
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "text", str(folder), str(folder / "built")]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # Lines are wrapped for reading.
    return " ".join((folder / "built" / "index.txt").read_text(encoding="utf-8").split())


def test_every_hook_is_in_the_reference_with_its_docstring_and_an_implementation(tmp_path: Path) -> None:
    reference = built("hook-reference", tmp_path)
    names = [name for name in vars(hookspecs) if name.startswith("probekit_")]
    assert len(names) >= 6
    for name in names:
        hook = getattr(hookspecs, name)
        first_line = (inspect.getdoc(hook) or "").splitlines()[0]
        # Code is shown between quotation marks in plain text.
        assert first_line.replace("`", '"') in reference
        assert f"@probekit.hookimpl def {name}(" in reference
        for argument in inspect.signature(hook).parameters:
            assert re.search(rf"{name}\([^)]*\b{argument}: ", reference), f"{name} takes {argument}"
    first_results = [name for name in names if getattr(hookspecs, name).probekit_spec["firstresult"]]
    assert reference.count("the first result that is not None counts") == len(first_results)
    assert all(f"`{name}(" in read("docs/plugins.md") for name in names)


def test_every_analysis_has_a_page_and_the_index_links_it() -> None:
    index = read("docs/analyses/index.md")
    [listed] = re.findall(r"```\{toctree\}\n:hidden:\n\n(.*?)```", index, re.DOTALL)
    assert sorted(listed.split()) == sorted(bundled_analyses())
    for name in bundled_analyses():
        assert f"[`{name}`]({name}.md)" in index
        assert read(f"docs/analyses/{name}.md").startswith(f"# `{name}`\n")


@pytest.mark.parametrize("name", bundled_analyses())
def test_every_option_of_an_analysis_is_described_on_its_page(name: str) -> None:
    assert re.findall(r"^```\{options-table\} (.+)$", read(f"docs/analyses/{name}.md"), re.MULTILINE) == [name]
    for option, field in bundled_analyses()[name].options_model.model_fields.items():
        assert (field.description or "").strip(), f"the option {option} of {name} has no description"


def test_every_command_and_every_option_of_it_has_a_help_text() -> None:
    names = []
    for name, command in commands():
        names.append(name)
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[-1]}"
    assert {"probekit run", "probekit study", "probekit models show", "probekit plugins new"} <= set(names)


def test_every_option_of_every_command_is_in_the_reference(tmp_path: Path) -> None:
    reference = built("command-reference", tmp_path)
    for name, command in commands():
        if isinstance(command, click.Group) and not command.invoke_without_command:
            continue
        # From this command's usage to the next one's.
        [section] = re.findall(rf"{name} \[OPTIONS\](.*?)(?:probekit [a-z ]+\[OPTIONS\]|$)", reference)
        flags = [flag for each in command.params if isinstance(each, click.Option) for flag in each.opts]
        assert [flag for flag in flags if f'"{flag}"' not in section] == [], name


def test_every_option_of_a_run_is_explained_on_a_page_written_by_hand() -> None:
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "changelog.md"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    parameters = dict(commands())["probekit run"].params
    for option in [parameter for parameter in parameters if isinstance(parameter, click.Option)]:
        flags = "|".join([*option.opts, *option.secondary_opts])
        assert re.search(rf"(?<![\w-])(?:{flags})(?![\w-])", text), f"{option.opts[-1]} is on no page"


def plugin_under(heading: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The first code block under that heading of the plugin guide, as a module."""
    [source] = re.findall(rf"## {heading}\n.*?```python\n(.*?)```", read("docs/plugins.md"), re.DOTALL)
    module = ModuleType("plugin_of_the_guide")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "docs/plugins.md", "exec"), module.__dict__)
    return module


@pytest.fixture
def plugin_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return plugin_under("A whole plugin", monkeypatch)


def test_the_plugin_of_the_guide_measures_what_it_says(plugin_of_the_guide: ModuleType, tmp_path: Path) -> None:
    record = probekit.Plugins(points=[]).register(plugin_of_the_guide)
    assert (record.status, [analysis.name for analysis in record.analyses]) == ("loaded", ["activation-norms"])
    [analysis_class] = record.analyses

    config = GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    subject = probekit.Subject(GPT2LMHeadModel(config))
    ids = torch.tensor([[1, 2, 3]])
    prompt = probekit.Prompt("", ids, ["a", "b", "c"])
    result = analysis_class(analysis_class.options_model()).run(subject, [prompt])

    for name, content in result.encode().items():
        (tmp_path / name).write_bytes(content)
    saved = probekit.Result.read(tmp_path)
    with torch.no_grad():
        first_block = subject.model.eval()(ids, output_hidden_states=True).hidden_states[1]
    assert saved.tensors["block.0"].tolist() == pytest.approx(first_block[0].norm(dim=-1).tolist(), rel=1e-6)

    page = probekit.Page("activation-norms")
    analysis_class(analysis_class.options_model()).report(saved, page)
    assert [block["type"] for block in page.blocks] == ["heatmap"]
    assert page.blocks[0]["y_labels"] == ["block.0", "block.1"]


def test_the_loader_of_the_guide_loads_the_encoder_of_a_t5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugins = probekit.Plugins(points=[])
    assert plugins.register(plugin_under("A loader and an anatomy", monkeypatch)).status == "loaded"
    whole = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2))
    whole.save_pretrained(tmp_path)
    subject = probekit.load(f"t5:{tmp_path}", plugins=plugins)
    ids = torch.tensor([[5, 4, 3]])
    with torch.no_grad():
        expected = whole.eval().get_encoder()(ids).last_hidden_state
    torch.testing.assert_close(subject.capture(ids, ["norm"])["norm"], expected, atol=2e-6, rtol=1e-5)
    with pytest.raises(probekit.UsageError, match="leave out --depth"):
        probekit.load(f"t5:{tmp_path}", plugins=plugins, depth=1)
    assert probekit.load("demo", plugins=plugins).facts["source"] == "demo"


def test_the_activation_analysis_of_the_guide_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = plugin_under("An analysis of activations", monkeypatch)
    [analysis] = probekit.Plugins(points=[]).register(plugin).analyses
    subject = testing.tiny_subject()
    prompts = testing.prompts(subject, "The sky is blue.", "Once")
    result = analysis(analysis.options_model(sites="block.1")).run(subject, prompts)
    rows = [subject.capture(prompt.input_ids, ["block.1"])["block.1"][0] for prompt in prompts]
    assert result.metrics == {"block.1": pytest.approx(torch.cat(rows).double().mean(0).norm().item(), rel=1e-5)}
    page = probekit.Page("mean")
    analysis(analysis.options_model()).report(result, page)
    assert page.blocks


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_recording_is_read_as_its_page_says(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recording = probekit.record(tiny_gpt2(n_layer=4), ["The sky is blue.", "Once"], output="recording")
    [plain, dataset] = re.findall(r"```python\n(.*?)```", read("docs/recordings.md"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(plain, found)
    subject = probekit.load(str(tiny_gpt2(n_layer=4)))
    expected = subject.capture(subject.encode("The sky is blue."), ["block.3"])["block.3"][0]
    torch.testing.assert_close(found["of_prompt_0"], expected)
    exec(dataset, found)
    assert found["rows"]["block.3"].shape == (recording.tokens, 32)
