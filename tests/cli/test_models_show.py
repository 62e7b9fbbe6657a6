"""`probekit models show`: what a model is, told before its weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import probekit
from tests.forward.tiny import make, tiny

GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
GPT2_XL = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 1600, "n_layer": 48, "n_head": 25}
# Wide and not deep: what its blocks take to describe grows with their number alone.
LLAMA_105B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 40960,
    "num_hidden_layers": 5,
    "num_attention_heads": 320,
    "intermediate_size": 112000,
}

# The command line with less address space than a thousandth of the weights would take, beside what is there already.
BOUNDED = """
import resource, sys
import torch, transformers, accelerate, bitsandbytes
from probekit.cli import main
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


def written(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def of_architecture(folder: Path, name: str) -> Path:
    """A folder with the config of a tiny model of that architecture, and nothing else."""
    tiny(CONFIG_MAPPING[name]).save_pretrained(folder)
    return folder


def untrained(folder: Path, name: str) -> Path:
    """A tiny model of that architecture, with its weights."""
    config_class = CONFIG_MAPPING[name]
    model: Any = make(MODEL_FOR_CAUSAL_LM_MAPPING[config_class], tiny(config_class))
    model.save_pretrained(folder)
    return folder


def described(probekit_cli: Any, *arguments: object) -> dict[str, Any]:
    ended = probekit_cli("models", "show", *arguments, "--json")
    assert ended.code == 0, ended.err
    facts: dict[str, Any] = json.loads(ended.out)
    return facts


# --- what is told ----------------------------------------------------------------------------------------------------


def test_the_embedded_model_is_described_as_it_is(probekit_cli: Any) -> None:
    facts = described(probekit_cli, "demo")
    subject = probekit.load("demo")
    assert (facts["source"], facts["architecture"], facts["dtype"]) == ("demo", "GPT2LMHeadModel", "float32")
    assert (facts["context"], facts["vocabulary"], facts["width"]) == (
        subject.context,
        subject.vocabulary,
        subject.width,
    )
    assert facts["tokenizer"]["tokens"] == len(subject.tokenizer)  # type: ignore[arg-type]
    parts = facts["anatomy"]
    assert parts["embedding"] == {"path": "transformer.wte", "class": "Embedding"}
    assert parts["blocks"] == {"path": "transformer.h", "count": 6, "classes": ["GPT2Block"]}
    assert (parts["norm"]["path"], parts["unembedding"]["path"], parts["tied"]) == ("transformer.ln_f", "lm_head", True)
    assert list(facts["sites"]) == subject.sites()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for site, activation in subject.capture(ids, subject.sites()).items():
        named = {"batch": 2, "sequence": 3}
        assert [named.get(axis, axis) for axis in facts["sites"][site]] == list(activation.shape)
    assert facts["parameters"]["total"] == sum(parameter.numel() for parameter in subject.model.parameters())
    assert all(answer["supported"] is True for answer in facts["supports"].values())
    assert facts["loaded"] is None


def test_a_config_alone_is_enough(probekit_cli: Any, tmp_path: Path) -> None:
    facts = described(probekit_cli, written(tmp_path, **GPT2_XL))
    assert facts["parameters"]["total"] == 1_557_611_200
    assert facts["parameters"]["blocks"] == [30_740_800] * 48
    assert facts["memory"]["float32"]["whole"] == 4 * 1_557_611_200
    assert facts["sites"]["block.47"] == ["batch", "sequence", 1600]
    assert facts["sites"]["logits"] == ["batch", "sequence", 50257]
    assert (facts["has_weights"], facts["tokenizer"]["class"]) == (False, None)


def test_the_text_has_one_line_for_blocks_that_are_alike(probekit_cli: Any, tmp_path: Path) -> None:
    ended = probekit_cli("models", "show", written(tmp_path, **GPT2))
    assert ended.code == 0, ended.err
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "block.0 … block.11 [batch, sequence, 768]" in lines
    assert "blocks transformer.h 12 × GPT2Block" in lines
    assert "total 124,439,808 100.0 %" in lines
    assert "float32 475 MiB 312 MiB 475 MiB" in lines
    assert "unembedding lm_head Linear, tied to the embedding" in lines
    assert max(map(len, ended.out.splitlines())) <= 100


def test_blocks_that_differ_have_lines_of_their_own(probekit_cli: Any) -> None:
    out = probekit_cli("models", "show", "fc-token,width=16,vocabulary=9").out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "block.0 [batch, sequence, 64]" in lines
    assert "block.1 [batch, sequence, 16]" in lines


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("gemma3n_text", [4, "batch", "sequence", 32]),
        ("deepseek_v4", ["batch", "sequence", 4, 32]),
        ("xlnet", ["sequence", "batch", 32]),
        ("prophetnet", ["batch", "3 × sequence", 32]),
        ("cpmant", ["batch", "32 + sequence", 32]),
        ("mixtral", ["batch", "sequence", 32]),
    ],
)
def test_unusual_axes_show(probekit_cli: Any, tmp_path: Path, name: str, block: list[Any]) -> None:
    facts = described(probekit_cli, of_architecture(tmp_path, name))
    assert facts["sites"]["block.0"] == facts["sites"]["block.2"] == block
    assert facts["supports"]["gradients"]["supported"] is True


def test_what_the_options_say_is_honoured(probekit_cli: Any, tmp_path: Path) -> None:
    name = written(tmp_path, **GPT2_XL)
    facts = described(probekit_cli, name, "--depth", 4, "--dtype", "bfloat16")
    assert (facts["anatomy"]["blocks"]["count"], facts["dtype"]) == (4, "bfloat16")
    assert facts["memory"]["int8"]["whole"] < facts["memory"]["bfloat16"]["whole"]
    refused = probekit_cli("models", "show", "demo", "--blocks", "transformer.nothing")
    assert (refused.code, refused.out) == (4, "")


def test_parts_are_spread_over_the_memory_that_is_given(probekit_cli: Any) -> None:
    options = ("--device-map", "auto", "--max-memory")
    facts = described(probekit_cli, "demo", *options, "cpu=8MiB")
    devices = facts["placement"]["devices"]
    assert not facts["placement"]["fits"]
    assert list(devices) == ["cpu", "disk"]
    assert devices["cpu"]["weights"] <= 8 << 20
    total = devices["cpu"]["weights"] + devices["disk"]["weights"]
    assert total == facts["memory"]["float32"]["whole"]
    assert "The model does not fit" in probekit_cli("models", "show", "demo", *options, "cpu=8MiB").out
    roomy = probekit_cli("models", "show", "demo", *options, "cpu=1GiB")
    assert "the whole model" in roomy.out
    assert "does not fit" not in roomy.out


# --- without weights -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="The address space in use is read from /proc.")
def test_a_model_of_a_hundred_billion_parameters_takes_no_memory(probekit_process: Any, tmp_path: Path) -> None:
    name = written(tmp_path / "model", **LLAMA_105B)
    ended = probekit_process("models", "show", name, "--json", code=BOUNDED)
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    assert facts["parameters"]["total"] > 100e9
    assert facts["sites"]["block.4"] == ["batch", "sequence", 40960]
    assert facts["supports"]["gradients"]["supported"] is True


def test_weights_are_not_read_unless_asked_to(probekit_cli: Any, tmp_path: Path) -> None:
    name = of_architecture(tmp_path, "llama")
    (name / "model.safetensors").write_bytes(b"no weights at all")
    assert described(probekit_cli, name)["parameters"]["total"] > 0
    ended = probekit_cli("models", "show", name, "--load")
    assert ended.code == 4
    assert ended.out == ""
    assert "cannot be read" in ended.sentence


def test_what_only_the_weights_tell_is_checked_when_they_are_loaded(probekit_cli: Any, tmp_path: Path) -> None:
    name = untrained(tmp_path, "gemma3n_text")
    facts = described(probekit_cli, name, "--load")
    assert facts["loaded"]["conditioned_on_ids"] is True
    assert facts["loaded"]["substitution"] is True
    assert facts["loaded"]["weights_sha256"] == probekit.load(name).facts["weights_sha256"]
    assert "Only the weights can tell" in probekit_cli("models", "show", name).out
    out = probekit_cli("models", "show", name, "--load").out
    assert "Only the weights can tell" not in out
    assert "read again by blocks" in out


def test_shapes_that_weights_decide_are_known_once_they_are_loaded(probekit_cli: Any, tmp_path: Path) -> None:
    name = untrained(tmp_path, "jetmoe")  # each expert takes as many tokens as its router gives it
    facts = described(probekit_cli, name)
    assert set(facts["sites"].values()) == {None}
    assert facts["supports"]["text alone"]["supported"] is None
    assert "known once the model is loaded" in probekit_cli("models", "show", name).out
    facts = described(probekit_cli, name, "--load")
    assert facts["sites"]["block.1"] == ["batch", "sequence", 32]
    assert facts["supports"]["gradients"]["supported"] is True


def test_parts_that_weights_decide_are_known_once_they_are_loaded(probekit_cli: Any, tmp_path: Path) -> None:
    name = untrained(tmp_path, "blt")
    ended = probekit_cli("models", "show", name)
    assert ended.code == 4
    assert "--load" in ended.sentence
    assert described(probekit_cli, name, "--load")["anatomy"]["blocks"]["count"] > 0


def test_a_plugins_loader_is_asked_first(probekit_cli: Any) -> None:
    facts = described(probekit_cli, "fc-invertible,tokens=6,width=16")
    assert (facts["source"], facts["anatomy"]["sequence"]) == ("plugin", 6)
    assert facts["loaded"]["conditioned_on_ids"] is False
    out = probekit_cli("models", "show", "fc-invertible,tokens=6,width=16").out
    assert "a plugin's loader, which has made the model" in out
    assert "of exactly 6 tokens" in out


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ('{"model_type": "nope"}', "not a causal language model"),
        ('{"model_type": "t5"}', "not a causal language model"),
        ('{"model_type": "gpt2", "n_embd": 10, "n_head": 3}', "divisible"),
        ('{"model_type": "gpt2", "n_layer": 0}', "No list of modules"),
        ('{"model_type": "musicgen"}', "could not be loaded"),
    ],
)
def test_a_config_that_makes_no_model_ends_with_one_sentence(
    probekit_cli: Any, tmp_path: Path, config: str, part: str
) -> None:
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    ended = probekit_cli("models", "show", tmp_path, "--json")
    assert (ended.code, ended.out) == (4, "")
    assert part in ended.sentence


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--depth", "99"], 2, "99 blocks"),
        (["--device", "nowhere"], 2, "'nowhere' is not a device"),
        (["--device-map", "nowhere"], 2, "'nowhere' is no device map; expected auto, balanced,"),
        (["--device-map", "auto", "--max-memory", "cpu=lots"], 2, "'lots' is no size of memory"),
        (["--blocks", "transformer.wte"], 4, "not a list of decoder blocks"),
    ],
)
def test_options_that_fit_no_model_end_with_one_sentence(
    probekit_cli: Any, options: list[str], code: int, part: str
) -> None:
    ended = probekit_cli("models", "show", "demo", *options)
    assert (ended.code, ended.out) == (code, "")
    assert part in ended.sentence


def test_a_tokenizer_that_is_missing_is_no_failure(probekit_cli: Any, tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained(tmp_path)
    assert described(probekit_cli, tmp_path)["tokenizer"]["why"].startswith("none")
