"""Placement: device maps that hold, quantised layers on disk, checkpoints that are quantised already, and bad maps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import probekit
from probekit.description.memory import weights
from probekit.errors import ModelError, UsageError
from probekit.models.quantization import quantised_layers
from probekit.models.spec import parse_spec
from probekit.subject import load_spec
from tests.models.test_loading import FAMILIES, IDS

LAYERS = 4
# Gradients and layer types of every one of them in tests/test_precision_and_placement.py.
KINDS = ("int8", "nf4", "fp4")


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A folder with a small Llama, with the settings of its config that are given."""
    name, sizes = FAMILIES["Wide Llama"]
    made: dict[str, str] = {}

    def folder(dtype: torch.dtype = torch.float32, **settings: Any) -> str:
        key = repr((dtype, sorted(settings.items())))
        if key not in made:
            kind: Any = getattr(transformers, name)
            made[key] = str(tmp_path_factory.mktemp("placed"))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                kind(kind.config_class(**{**sizes, **settings})).to(dtype).save_pretrained(made[key])
        return made[key]

    return folder


def half_on_disk() -> dict[str, int | str]:
    """The two last blocks on disk."""
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    blocks = {f"model.layers.{index}": "cpu" if index < LAYERS // 2 else "disk" for index in range(LAYERS)}
    return {**dict.fromkeys(rest, "cpu"), **blocks}


def logits(subject: probekit.Subject) -> torch.Tensor:
    return subject.capture(IDS, ["logits"])["logits"]


# --- quantised, and not in memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_disk_are_quantised_as_well(save: Callable[..., str], kind: Any) -> None:
    subject = probekit.load(save(), quantization=kind, device_map=half_on_disk())
    assert subject.facts["quantization"] == {kind: LAYERS * 7, "unquantised": 1}
    assert set(subject.facts["device"].values()) == {"cpu", "disk"}
    assert torch.equal(logits(subject), logits(probekit.load(save(), quantization=kind)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads what only Linux tells")
@pytest.mark.parametrize("kind", KINDS)
def test_what_belongs_on_disk_is_mapped_from_there(save: Callable[..., str], kind: Any) -> None:
    subject = probekit.load(save(), quantization=kind, dtype="bfloat16", device_map=half_on_disk())
    for index, block in enumerate(subject.anatomy.blocks):
        for name, parameter in block.named_parameters():
            assert is_mapped(parameter) == (index >= LAYERS // 2), (index, name)


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is that of a file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        bounds, _, _, _, _, *path = line.split(maxsplit=5)
        first, last = (int(bound, 16) for bound in bounds.split("-"))
        if first <= address < last:
            return bool(path) and path[0].endswith(".safetensors (deleted)")
    raise AssertionError("a tensor is somewhere")


def test_memory_decides_what_goes_to_disk(save: Callable[..., str]) -> None:
    subject = probekit.load(save(), quantization="int8", device_map="auto", max_memory={"cpu": "160KB"})
    assert set(subject.facts["device"].values()) == {"cpu", "disk"}
    assert subject.facts["quantization"]["int8"] == LAYERS * 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_is_quantised_already_is_loaded_as_it_is(
    save: Callable[..., str], kind: Any, tmp_path: Path
) -> None:
    made = probekit.load(save(), quantization=kind)
    made.model.save_pretrained(tmp_path)
    for again in (
        probekit.load(tmp_path),
        probekit.load(tmp_path, quantization=kind),
        probekit.load(tmp_path, device="cpu"),
        probekit.load(tmp_path, device_map=half_on_disk()),
    ):
        assert again.facts["quantization"] == made.facts["quantization"]
        assert torch.equal(logits(again), logits(made))
    other = "int8" if kind != "int8" else "nf4"
    with pytest.raises(UsageError, match=rf"quantised already \({kind}\), and cannot be quantised as {other}"):
        probekit.load(tmp_path, quantization=other)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_a_model_that_was_spilled_can_be_saved(save: Callable[..., str], tmp_path: Path) -> None:
    subject = probekit.load(save(), quantization="int8", device_map=half_on_disk())
    subject.model.save_pretrained(tmp_path)
    assert torch.equal(logits(probekit.load(tmp_path)), logits(subject))


@pytest.mark.parametrize("kind", [None, "int8"])
def test_random_weights_are_offloaded_and_stay_there(kind: Any) -> None:
    """What they were saved to is there for as long as the model."""
    folder = Path(probekit.load("demo").model.config.name_or_path)
    resident = probekit.load(folder, weights="random", quantization=kind)
    blocks = resident.anatomy.block_paths
    leaves = [path for path, part in resident.model.named_modules() if not list(part.children())]
    rest = [path for path in leaves if not any(path.startswith(f"{block}.") for block in blocks)]
    device_map: Any = {**dict.fromkeys(rest, "cpu"), **dict.fromkeys(blocks, "disk")}
    offloaded = probekit.load(folder, weights="random", quantization=kind, device_map=device_map)
    ids = IDS + 40
    expected = resident.capture(ids, ["block.-1"])["block.-1"]
    assert torch.equal(offloaded.capture(ids, ["block.-1"])["block.-1"], expected)


def test_temporary_files_go_with_the_model(save: Callable[..., str], tmp_path: Path) -> None:
    code = (
        "import sys, gc, os, probekit\n"
        "folder, place = sys.argv[1:]\n"
        "kept = probekit.load(folder, weights='random', device_map={'': 'disk'})\n"
        "assert os.listdir(place)\n"
        "other = probekit.load(folder, weights='random', device_map={'': 'disk'})\n"
        "before = len(os.listdir(place))\n"
        "del other; gc.collect()\n"
        "assert len(os.listdir(place)) < before\n"
    )
    command = [sys.executable, "-c", code, save(), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


# --- what is checked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device_map": "automatic"}, "'automatic' is no device map; expected auto, balanced,"),
        ({"device_map": {"": "gpu"}}, r"'gpu' is not a device \(in the device map, for ''\)"),
        ({"device_map": {"": 99}}, r"There is no device '99' here \(\d+ CUDA devices\) \(in the device map"),
        ({"device_map": {"model.layer": "cpu"}}, "names 'model.layer', which is no part of the model. Did you mean"),
        ({"device_map": {"model": "disk"}}, r"leaves 1 weights of the model out \(first: lm_head.weight\)"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "'much' is no size of memory; expected bytes, or"),
        ({"device_map": "auto", "max_memory": {"gpu": "1GiB"}}, r"'gpu' is not a device \(in --max-memory\)"),
        ({"max_memory": {"cpu": "much"}}, "'much' is no size of memory; expected bytes, or"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_a_map_that_cannot_hold_is_a_sentence(save: Callable[..., str], options: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        probekit.load(save(), **options)


def test_one_weight_cannot_be_in_two_places(save: Callable[..., str]) -> None:
    folder = save(tie_word_embeddings=True)
    device_map = {**half_on_disk(), "lm_head": "disk"}
    with pytest.raises(UsageError, match=r"on disk and 'model.embed_tokens.weight' on cpu, but they are one weight"):
        probekit.load(folder, device_map=device_map)


@pytest.mark.parametrize("place", [{}, {"device_map": {"": "disk"}}], ids=["cpu", "disk"])
def test_4_bits_are_not_made_of_float64(save: Callable[..., str], place: Any) -> None:
    with pytest.raises(UsageError, match="not from float64; add --dtype float32"):
        probekit.load(save(), quantization="nf4", dtype="float64", **place)
    with pytest.raises(UsageError, match="not from float64"):
        probekit.load(save(torch.float64), quantization="nf4", **place)


def test_a_model_without_layers_to_quantise_is_not_called_quantised(tmp_path: Path) -> None:
    config = transformers.FalconConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    transformers.FalconForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no linear layer that bitsandbytes converts"):
        probekit.load(tmp_path, quantization="int8")


def test_layers_are_counted_by_what_their_weights_are() -> None:
    from bitsandbytes.nn import Linear8bitLt

    layers = nn.Sequential(Linear8bitLt(64, 64, has_fp16_weights=False), nn.Linear(64, 64))
    assert quantised_layers(layers) == {}, "its weights are still what they were"
    layers[0].to("cpu")
    layers[0].weight = layers[0].weight.to("cpu")
    assert quantised_layers(layers) == {"int8": 1, "unquantised": 1}


def test_a_plugin_s_own_placement_is_not_undone(save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        @probekit.hookimpl
        def probekit_load_model(self, spec: Any) -> Any:
            return probekit.load(save(), quantization="int8").model, None

    manager = probekit.Plugins(points=[])
    manager.register(Loader())
    assert probekit.load("mine", device="cpu", plugins=manager).facts["device"] == "cpu", "it is there"
    monkeypatch.setattr("probekit.models.loading.execution_device", lambda model: torch.device("cuda", 0))
    with pytest.raises(UsageError, match="is placed by the plugin that loads it, and must not be moved"):
        probekit.load("mine", device="cpu", plugins=manager)


@pytest.mark.parametrize("compute", [None, torch.float32])
def test_a_wrapped_model_keeps_the_types_of_its_biases(compute: torch.dtype | None, tmp_path: Path) -> None:
    """bitsandbytes casts the biases of 4-bit layers for good, in their first forward."""
    name, sizes = FAMILIES["Wide GPT2"]
    kind: Any = getattr(transformers, name)
    kind(kind.config_class(**sizes)).to(torch.bfloat16).save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )
    model = kind.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"}, dtype=torch.bfloat16)
    before = {name: part.dtype for name, part in model.named_parameters()}
    assert torch.bfloat16 in before.values()
    subject = probekit.Subject(model)
    subject.layer_map("block.-1")(subject.embed(IDS).requires_grad_()).sum().backward()
    assert {name: part.dtype for name, part in model.named_parameters()} == before


def test_offloading_that_was_asked_for_is_not_warned_of(
    save: Callable[..., str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save()
    capfd.readouterr()
    probekit.load(folder, device_map=half_on_disk())
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


# --- what a hostile or unlucky user finds ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_experts_that_belong_on_disk_are_there_too(dtype: str, tmp_path: Path) -> None:
    """transformers joins them while it loads, so that they are not as the checkpoint has them."""
    sizes = {**FAMILIES["Wide Llama"][1], "num_local_experts": 4, "num_hidden_layers": 2}
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes)).save_pretrained(tmp_path)
    subject = probekit.load(tmp_path, quantization="int8", dtype=dtype, device_map={"": "disk"})
    if sys.platform.startswith("linux"):
        held = weights(subject)
        assert held.in_memory < 0.01 * held.mapped
    assert 0 < subject.facts["quantised_share"] < 0.5
    assert torch.equal(logits(subject), logits(probekit.load(tmp_path, quantization="int8", dtype=dtype)))


def test_random_weights_of_a_checkpoint_that_is_quantised_are_plain_ones(
    save: Callable[..., str], tmp_path: Path
) -> None:
    probekit.load(save(), quantization="int8").model.save_pretrained(tmp_path)
    expected = logits(probekit.load(save(), weights="random"))
    for options in ({}, {"device_map": {"": "disk"}}, {"device_map": "auto"}):
        subject = probekit.load(tmp_path, weights="random", **options)  # type: ignore[arg-type]
        assert "quantization" not in subject.facts
        assert torch.equal(logits(subject), expected)
    again = probekit.load(tmp_path, weights="random", quantization="int8")
    assert torch.equal(logits(again), logits(probekit.load(save(), weights="random", quantization="int8")))


def test_the_precision_of_a_quantised_checkpoint_is_its_own(save: Callable[..., str], tmp_path: Path) -> None:
    probekit.load(save(), quantization="int8").model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="keep the precision in which they were saved; leave --dtype out"):
        probekit.load(tmp_path, dtype="bfloat16")


def test_packed_weights_count_as_what_they_stand_for(save: Callable[..., str]) -> None:
    counts = {kind: probekit.load(save(), quantization=kind).facts["parameters"] for kind in (None, "int8", "nf4")}
    assert len(set(counts.values())) == 1


def test_a_spilled_model_is_known_to_be_quantised(save: Callable[..., str]) -> None:
    model: Any = probekit.load(save(), quantization="int8", device_map=half_on_disk()).model
    with pytest.raises(ValueError, match="cannot cast a bitsandbytes model"):
        model.to(torch.float16)


def test_a_spec_is_not_written_into(save: Callable[..., str]) -> None:
    spec = parse_spec(name=save(), device_map="auto", max_memory={"cpu": "300KB"})
    load_spec(spec)
    assert spec.max_memory == {"cpu": "300KB"}


def test_what_a_map_of_memory_does_not_name_has_what_is_free(save: Callable[..., str]) -> None:
    assert probekit.load(save(), device_map="auto", max_memory={"disk": "1GB"}).facts["device"] == "cpu"


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}], ids=["plain", "int8"])
def test_a_model_that_stays_in_memory_needs_no_temporary_folder(
    save: Callable[..., str], options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    probekit.load(folder, **options)
    with pytest.raises(ModelError, match=r"needs a temporary folder, and none can be made .*TMPDIR"):
        probekit.load(folder, device_map={"": "disk"}, **options)


def test_a_full_disk_is_called_that(save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = save()
    monkeypatch.setattr("probekit.models.spilling.save_file", full)
    with pytest.raises(ModelError, match=r"The disk is full: .*TMPDIR"):
        probekit.load(folder, quantization="int8", device_map=half_on_disk())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device_map": "auto", "max_memory": {}}, "The memory of no device is given"),
        ({"device_map": "auto", "max_memory": {"cpu": "infGB"}}, "'infGB' is no size of memory"),
        ({"device": "meta"}, "no device 'meta' here that could compute"),
        ({"device": "xpu"}, "no device 'xpu' here that could compute"),
        ({"device": "cpu:1"}, "There is one CPU, 'cpu', and no 'cpu:1'"),
        ({"device_map": {}}, r"leaves \d+ weights of the model out \(first: "),
        (
            {"device_map": {"": "cpu", "model.layers.0.self_attn.q_proj.weight": "disk"}},
            "which is no part of the model",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:25],
)
def test_more_maps_that_cannot_hold(save: Callable[..., str], options: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        probekit.load(save(), **options)


def test_a_limit_needs_no_device_map_and_is_known_in_bytes(save: Callable[..., str]) -> None:
    assert probekit.load(save(), max_memory={"cpu": "2KiB"}).max_memory == {"cpu": 2048}
    assert probekit.load(save(), device="cpu", max_memory={"cpu": 7}).max_memory == {"cpu": 7}
    assert probekit.load(save()).max_memory == {}
