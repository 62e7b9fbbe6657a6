"""Loading: folders and random weights, precisions, depth, tied heads, shards, missing tokenizers, and provenance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import probekit
from probekit.errors import ModelError, UsageError
from probekit.models.failures import in_sentences
from probekit.models.loading import weights_hash
from probekit.models.spec import ModelSpec
from probekit.subject import load_spec

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Sliding and full attention by turns: the config has one entry a block.
ALTERNATING = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}),
    "Llama": ("LlamaForCausalLM", SIZES),
    # Widths that are multiples of 64, as bitsandbytes' 4-bit kernels for CPUs with AVX-512 need.
    "Wide Llama": ("LlamaForCausalLM", {**SIZES, "hidden_size": 64, "intermediate_size": 128}),
    "Wide GPT2": (
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64},
    ),
    "Qwen2": ("Qwen2ForCausalLM", {**SIZES, **ALTERNATING, "use_sliding_window": True}),
    "Gemma3Text": ("Gemma3ForCausalLM", {**SIZES, **ALTERNATING, "head_dim": 8}),
}
IDS = torch.tensor([[5, 17, 3, 60, 9, 31, 2, 44]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`saved("Llama", tie_word_embeddings=True)`: a folder as save_pretrained() writes it, made once."""
    made: dict[str, Path] = {}

    def save(family: str, max_shard_size: str = "5GB", **overrides: Any) -> Path:
        key = repr((family, max_shard_size, sorted(overrides.items())))
        if key not in made:
            class_name, sizes = FAMILIES[family]
            config = getattr(transformers, f"{family.split()[-1]}Config")(
                **{**sizes, "bos_token_id": 1, "eos_token_id": 2}
            )
            for name, value in overrides.items():
                setattr(config, name, value)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = getattr(transformers, class_name)(config)
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key], max_shard_size=max_shard_size)
        return made[key]

    return save


def logits(subject: probekit.Subject) -> torch.Tensor:
    return subject.capture(IDS, ["logits"])["logits"]


def plain_logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_loads_as_transformers_loads_it_in_eval_mode_and_frozen(
    saved: Callable[..., Path], family: str
) -> None:
    folder = saved(family)
    subject = probekit.load(str(folder))
    assert torch.equal(logits(subject), plain_logits(folder))
    assert not any(module.training for module in subject.model.modules())
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())
    assert subject.facts["source"] == "folder"
    assert subject.facts["weights_sha256"] == weights_hash(folder)
    assert subject.facts["parameters"] == sum(parameter.numel() for parameter in subject.model.parameters())
    assert subject.facts["device"] == "cpu"
    assert subject.facts["architecture"] == FAMILIES[family][0]


def test_load_and_load_spec_are_the_same(saved: Callable[..., Path]) -> None:
    folder = str(saved("Llama"))
    spec = probekit.ModelSpec(name=folder, dtype="float64")
    assert torch.equal(logits(load_spec(spec)), logits(probekit.load(folder, dtype="float64")))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_tied_and_untied_heads_load(saved: Callable[..., Path], family: str, tied: bool) -> None:
    folder = saved(family, tie_word_embeddings=tied)
    subject = probekit.load(str(folder))
    head, embedding = subject.anatomy.unembedding, subject.anatomy.embedding
    assert isinstance(head, nn.Linear)
    assert (head.weight is embedding.weight) == tied
    assert torch.equal(logits(subject), plain_logits(folder))


def test_a_checkpoint_in_several_files_is_the_same_model(saved: Callable[..., Path]) -> None:
    folder = saved("Llama", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert torch.equal(logits(probekit.load(str(folder))), logits(probekit.load(str(saved("Llama")))))


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-5), ("float32", 0), ("bfloat16", 0.02), ("float16", 0.002)]
)
def test_every_precision_computes_the_same_function(
    saved: Callable[..., Path], dtype: str, tolerance: float, weights: str
) -> None:
    folder = str(saved("GPT2"))
    subject = probekit.load(folder, dtype=dtype, weights=weights)
    assert subject.facts["dtype"] == dtype
    assert {str(parameter.dtype) for parameter in subject.model.parameters()} == {f"torch.{dtype}"}
    assert logits(subject).dtype == getattr(torch, dtype)
    if weights == "pretrained":
        difference = (logits(subject).double() - logits(probekit.load(folder)).double()).abs().max()
        assert difference <= tolerance
    embeddings = subject.embed(IDS).requires_grad_()
    subject.layer_map("block.-1")(embeddings).float().square().sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.any()


def test_auto_keeps_the_checkpoints_precision(saved: Callable[..., Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(saved("Llama"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert probekit.load(str(tmp_path)).facts["dtype"] == "bfloat16"
    assert probekit.load(str(tmp_path), weights="random").facts["dtype"] == "bfloat16"


# --- random weights --------------------------------------------------------------------------------------------------


def test_random_weights_are_repeatable_and_differ_by_seed(saved: Callable[..., Path]) -> None:
    folder = str(saved("Llama"))
    first, again, other = (probekit.load(folder, weights="random", weights_seed=seed) for seed in (3, 3, 4))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert not torch.equal(logits(first), logits(other))
    assert not torch.equal(logits(first), logits(probekit.load(folder)))
    assert first.facts["source"] == "random weights"
    assert first.facts["weights_seed"] == 3
    assert "weights_sha256" not in first.facts


def test_random_weights_need_no_checkpoint(saved: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(saved("Llama") / "config.json", tmp_path)
    expected = probekit.load(str(saved("Llama")), weights="random")
    assert torch.equal(logits(probekit.load(str(tmp_path), weights="random")), logits(expected))
    with pytest.raises(ModelError, match="has a config but no weights that can be loaded; use --weights random"):
        probekit.load(str(tmp_path))


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_the_callers_random_state_is_left_alone(saved: Callable[..., Path], weights: str) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(11)
    np.random.seed(11)
    probekit.load(str(saved("Llama")), weights=weights, weights_seed=5)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_random_weights_do_not_seed_other_devices(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(saved("Llama"))
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    probekit.load(folder, weights="random", weights_seed=5)
    assert seeded == []


# --- depth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_is_the_first_blocks_of_the_full_one_bit_for_bit(
    saved: Callable[..., Path], family: str, depth: int
) -> None:
    folder = str(saved(family))
    full, cut = probekit.load(folder), probekit.load(folder, depth=depth)
    assert len(cut.anatomy.blocks) == depth
    sites = ["embedding", *(f"block.{index}" for index in range(depth))]
    expected = full.capture(IDS, sites)
    for site, activation in cut.capture(IDS, sites).items():
        assert torch.equal(activation, expected[site]), site
    layer_types = getattr(cut.model.config, "layer_types", None)
    if layer_types is not None:
        assert layer_types == full.model.config.layer_types[:depth]


def test_random_weights_can_be_cut(saved: Callable[..., Path]) -> None:
    subject = probekit.load(str(saved("Gemma3Text")), weights="random", depth=2)
    assert len(subject.anatomy.blocks) == 2


def test_a_depth_past_the_last_block_is_a_sentence(saved: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="A depth of 5 blocks was asked for, but the model has 4"):
        probekit.load(str(saved("Llama")), depth=5)


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_without_a_tokenizer_prompts_are_token_ids(saved: Callable[..., Path]) -> None:
    subject = probekit.load(str(saved("Llama")))
    assert subject.tokenizer is None
    assert subject.facts["tokenizer"].startswith("none (")
    with pytest.raises(
        UsageError, match=r"This model has no tokenizer; give the prompt as token ids \(--input-ids 1,2,3\)"
    ):
        subject.encode("The sky is blue.")
    assert subject.check_ids([1, 2, 3]).tolist() == [[1, 2, 3]]
    assert subject.tokens([7, 9]) == ["<7>", "<9>"]
    assert subject.text([7, 9]) == "<7><9>"


def test_a_run_without_a_tokenizer_takes_token_ids_and_refuses_text(
    saved: Callable[..., Path], probekit_cli: Any, tmp_path: Path
) -> None:
    small = ["--model", saved("Llama"), "--plugin", "gradient-inverter", "-o", "steps=2", "-o", "restarts=2"]
    ended = probekit_cli("run", *small, "--input-ids", "5,17,3", "--output", tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    refused = probekit_cli("run", *small, "--prompt", "The sky", "--output", tmp_path / "refused")
    assert refused.code == 2
    assert "has no tokenizer; give the prompt as token ids" in refused.err
    assert "Traceback" not in refused.err


# --- provenance ------------------------------------------------------------------------------------------------------


def test_the_weights_hash_changes_with_one_weight_and_with_nothing_else(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved("Llama"), folder)
    before = weights_hash(folder)
    assert before == weights_hash(saved("Llama"))
    (folder / "notes.txt").write_text("nothing of the weights")
    assert weights_hash(folder) == before
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, file, metadata={"format": "pt"})
    assert weights_hash(folder) != before
    assert probekit.load(str(folder)).facts["weights_sha256"] == weights_hash(folder)


# --- weights that do not fit -----------------------------------------------------------------------------------------


def changed_config(folder: Path, to: Path, **changes: Any) -> str:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return str(to)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 5}, r"9 are missing from the checkpoint \(first: model\.layers\.4\."),
        ({"num_hidden_layers": 3}, r"the checkpoint has model\.layers\.3\..* makes only 3 blocks; use --depth"),
        ({"vocab_size": 65}, "do not fit its config"),
        ({"intermediate_size": 40}, "do not fit its config"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_that_do_not_fit_the_config_are_a_sentence(
    saved: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    folder = changed_config(saved("Llama"), tmp_path / "changed", **changes)
    with pytest.raises(ModelError, match=sentence) as raised:
        probekit.load(folder)
    assert "\n" not in str(raised.value)
    assert folder in str(raised.value)


def test_a_head_that_is_missing_is_an_error_unless_it_is_tied(saved: Callable[..., Path], tmp_path: Path) -> None:
    tied = saved("Llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 are missing from the checkpoint \(first: lm_head\.weight\)"):
        probekit.load(changed_config(tied, tmp_path / "untied", tie_word_embeddings=False))


def test_a_damaged_file_is_a_sentence(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(saved("Llama"), folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot be read \(damaged or incomplete file\)"):
        probekit.load(str(folder))


# --- quantisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize(("quantization", "kind"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
@pytest.mark.parametrize("family", ["Wide GPT2", "Wide Llama"])
def test_quantised_layers_are_bitsandbytes_own_and_gradients_reach_the_embeddings(
    saved: Callable[..., Path], family: str, quantization: str, kind: str, weights: str
) -> None:
    folder = str(saved(family))
    subject = probekit.load(folder, quantization=quantization, weights=weights)
    linear = {
        path: type(module).__name__
        for path, module in subject.model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    inside = {path: name for path, name in linear.items() if path.startswith(subject.anatomy.blocks_path)}
    assert len(inside) == 4 * (4 if family == "Wide GPT2" else 7)
    assert set(inside.values()) == {kind}
    assert linear["lm_head"] == "Linear"
    assert not any(parameter.requires_grad for parameter in subject.model.parameters())

    full = probekit.load(folder, weights=weights)
    embeddings = full.embed(IDS)
    expected = full.layer_map("block.-1")(embeddings)
    inputs = embeddings.clone().requires_grad_()
    activation = subject.layer_map("block.-1")(inputs)
    error = (activation.detach() - expected).norm() / (expected - embeddings).norm()
    assert 0 < error < (0.05 if quantization == "int8" else 0.3)
    activation.float().square().sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()
    assert inputs.grad.abs().min(dim=-1).values.max() > 0


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["Wide GPT2", "Wide Llama"])
def test_a_quantised_layer_map_is_the_function_that_capture_reads_and_changes_no_weight(
    saved: Callable[..., Path], family: str, quantization: str
) -> None:
    subject = probekit.load(str(saved(family)), quantization=quantization)
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    captured = subject.capture(IDS, ["block.-1"])["block.-1"]
    layer_map = subject.layer_map("block.-1")
    embeddings = subject.embed(IDS)
    for _ in range(4):
        torch.testing.assert_close(layer_map(embeddings), captured)
        torch.testing.assert_close(layer_map(embeddings.clone().requires_grad_()).detach(), captured)
    after = subject.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_a_4_bit_model_that_is_wrapped_keeps_its_weights_and_has_gradients(saved: Callable[..., Path]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        saved("Wide Llama"),
        quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map={"": "cpu"},
    )
    before = {
        path: dict(vars(module)) for path, module in model.named_modules() if type(module).__name__ == "Linear4bit"
    }
    weights = {path: module.weight.data.clone() for path, module in model.named_modules() if path in before}
    subject = probekit.Subject(model)
    captured = subject.capture(IDS, ["block.-1"])["block.-1"]
    embeddings = subject.embed(IDS).requires_grad_()
    activation = subject.layer_map("block.-1")(embeddings)
    torch.testing.assert_close(activation.detach(), captured)
    activation.square().sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.any()
    for path, module in model.named_modules():
        if path in before:
            assert torch.equal(module.weight.data, weights[path]), path
            assert module.support_avx512bf16_for_cpu == before[path]["support_avx512bf16_for_cpu"]


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_forward_says_nothing(
    saved: Callable[..., Path], quantization: str, caplog: pytest.LogCaptureFixture
) -> None:
    subject = probekit.load(str(saved("Wide Llama")), quantization=quantization)
    subject.layer_map("logits")(subject.embed(IDS).requires_grad_()).sum().backward()
    assert caplog.messages == []


def test_a_quantised_model_can_be_cut(saved: Callable[..., Path]) -> None:
    folder = str(saved("Wide Llama"))
    full, cut = probekit.load(folder, quantization="nf4"), probekit.load(folder, quantization="nf4", depth=2)
    assert torch.equal(cut.capture(IDS, ["block.1"])["block.1"], full.capture(IDS, ["block.1"])["block.1"])


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [32, 48, 64, 80, 96])
def test_4_bit_weights_are_read_back_right_or_refused(
    saved: Callable[..., Path], width: int, quantization: str
) -> None:
    folder = str(saved("Wide Llama", intermediate_size=width))
    full = probekit.load(folder)
    try:
        subject = probekit.load(folder, quantization=quantization)
    except ModelError as error:
        assert width % 64 != 0
        assert f"reads weights of the width {width} (model.layers.0.mlp.down_proj) back wrongly" in str(error)  # noqa: PT017
        return
    embeddings = full.embed(IDS)
    expected = full.layer_map("block.0")(embeddings)
    error_norm = (subject.layer_map("block.0")(embeddings) - expected).norm() / (expected - embeddings).norm()
    assert error_norm < 0.3


# --- placement -------------------------------------------------------------------------------------------------------


def test_a_device_map_is_the_same_model(saved: Callable[..., Path]) -> None:
    folder = str(saved("Llama"))
    subject = probekit.load(folder, device_map={"": "cpu"})
    assert torch.equal(logits(subject), logits(probekit.load(folder)))
    assert subject.facts["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "cpu", "device_map": "auto"}, "Both a device and a device map are given"),
        ({"device": "gpu"}, "'gpu' is not a device; expected 'cpu', 'cuda:0'"),
        ({"device": "cuda:99"}, "There is no device 'cuda:99' here"),
    ],
    ids=["both", "unknown", "absent"],
)
def test_devices_that_cannot_be_used_are_a_sentence(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        probekit.load("demo", **options)


def test_an_interrupt_that_a_clean_up_fails_over_is_an_interrupt() -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            [].pop()

    with pytest.raises(KeyboardInterrupt), in_sentences(ModelSpec()):
        interrupted()
