"""What the documentation says is true of the code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import probekit
from probekit import testing

ROOT = Path(__file__).resolve().parents[1]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_api_page_has_every_public_name_once() -> None:
    documented = re.findall(r"^```\{public-api\} (\w+)$", read("docs/api.md"), re.MULTILINE)
    assert sorted(documented) == sorted(probekit.__all__)


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
