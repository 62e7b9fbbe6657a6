"""Tiny encoders with random weights, saved as checkpoints are published (with their heads and decoders) and loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probekit_encoders
import pytest
import torch
import transformers

import probekit

VOCABULARY = 64
IDS = torch.tensor([[25, 30, 31, 27, 12]])

# The small sizes that these families call alike.
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "max_position_embeddings": 32,
    **{f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in (("ffn_dim", 32), ("layers", 3))},
    **{f"{half}_attention_heads": 2 for half in ("encoder", "decoder")},
}
BERT_EMBEDDING = "embeddings.word_embeddings"

# The class that checkpoints are saved with, its config, and where the encoder has its embedding, blocks and norm.
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, str, str | None]]] = {
    "BERT": ("BertForMaskedLM", SMALL, (BERT_EMBEDDING, "encoder.layer", None)),
    "RoBERTa": ("RobertaForMaskedLM", SMALL, (BERT_EMBEDDING, "encoder.layer", None)),
    "RoBERTa with its norms in front": (
        "RobertaPreLayerNormForMaskedLM",
        SMALL,
        (BERT_EMBEDDING, "encoder.layer", "LayerNorm"),
    ),
    "MPNet": ("MPNetForMaskedLM", SMALL, (BERT_EMBEDDING, "encoder.layer", None)),
    "ELECTRA": ("ElectraForMaskedLM", SMALL | {"embedding_size": 8}, (BERT_EMBEDDING, "encoder.layer", None)),
    "ALBERT": (
        "AlbertForMaskedLM",
        SMALL | {"embedding_size": 8},
        (BERT_EMBEDDING, "encoder.albert_layer_groups", None),
    ),
    "DeBERTa": ("DebertaV2ForMaskedLM", SMALL, (BERT_EMBEDDING, "encoder.layer", None)),
    "DistilBERT": (
        "DistilBertForMaskedLM",
        {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 32, "n_layers": 3, "n_heads": 2},
        (BERT_EMBEDDING, "transformer.layer", None),
    ),
    "ModernBERT": (
        "ModernBertForMaskedLM",
        SMALL | {"eos_token_id": 2, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 2},
        ("embeddings.tok_embeddings", "layers", "final_norm"),
    ),
    "NomicBERT": ("NomicBertForMaskedLM", SMALL | {"head_dim": 8}, (BERT_EMBEDDING, "layers", None)),
    "EuroBERT": (
        "EuroBertForMaskedLM",
        SMALL | {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 2, "mask_token_id": 3},
        ("embed_tokens", "layers", "norm"),
    ),
    "T5": ("T5ForConditionalGeneration", T5, ("encoder.embed_tokens", "encoder.block", "encoder.final_layer_norm")),
    "mT5": ("MT5ForConditionalGeneration", T5, ("encoder.embed_tokens", "encoder.block", "encoder.final_layer_norm")),
    "UMT5": ("UMT5ForConditionalGeneration", T5, ("encoder.embed_tokens", "encoder.block", "encoder.final_layer_norm")),
    "LongT5": ("LongT5ForConditionalGeneration", T5, ("embed_tokens", "block", "final_layer_norm")),
    "BART": ("BartForConditionalGeneration", BART, ("embed_tokens", "layers", None)),
    "M2M-100": ("M2M100ForConditionalGeneration", BART, ("embed_tokens", "layers", "layer_norm")),
}


def make(name: str, settings: dict[str, Any]) -> Any:
    """A model of that class, in eval mode, with weights that do not depend on what was made before it."""
    model_class = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(model_class.config_class(**settings)).eval()


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """The folder of a BERT with a tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sky", "is", "blue", "sea", "green", "and"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    make("BertForMaskedLM", SMALL | {"pad_token_id": 0}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def load() -> Callable[..., probekit.Subject]:
    """`load(folder, dtype="float64")`: the encoder in a folder as a subject, by the hooks of this plugin."""
    plugins = probekit.Plugins(points=[])
    assert plugins.register(probekit_encoders).status == "loaded"

    def load_encoder(folder: object, **spec: Any) -> probekit.Subject:
        return probekit.load(f"encoder:{folder}", plugins=plugins, **spec)

    return load_encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_found_and_the_encoder_is_the_checkpoint_s(
    family: str, tmp_path: Path, load: Callable[..., probekit.Subject]
) -> None:
    class_name, settings, (embedding, blocks, norm) = FAMILIES[family]
    whole = make(class_name, settings)
    whole.save_pretrained(tmp_path)
    subject = load(tmp_path)
    anatomy = subject.anatomy
    assert (anatomy.embedding_path, anatomy.blocks_path, anatomy.norm_path) == (embedding, blocks, norm)
    assert anatomy.unembedding is None
    assert not subject.has_logits
    assert len(anatomy.blocks) == (1 if family == "ALBERT" else 3)

    encoder = whole.get_encoder() if whole.config.is_encoder_decoder else whole.base_model
    with torch.no_grad():
        expected = encoder(input_ids=IDS).last_hidden_state
    captured = subject.capture(IDS, ["block.0", "block.-1", *(["norm"] if norm else []), "logits"])
    torch.testing.assert_close(captured["logits"], expected, atol=2e-6, rtol=1e-5)
    if norm:
        torch.testing.assert_close(captured["norm"], expected, atol=2e-6, rtol=1e-5)

    embeddings = subject.embed(IDS).requires_grad_()
    activation = subject.layer_map("block.-1")(embeddings)
    torch.testing.assert_close(activation, captured["block.-1"])
    activation[0, 0].square().sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[0].abs().sum(dim=-1).all(), "the first position sees every other"


def test_of_two_towers_the_text_encoder_is_loaded(tmp_path: Path, load: Callable[..., probekit.Subject]) -> None:
    text = SMALL | {"eos_token_id": 2, "bos_token_id": 0}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
    }
    whole = make("CLIPModel", {"text_config": text, "vision_config": vision | {"patch_size": 4}, "projection_dim": 8})
    whole.save_pretrained(tmp_path)
    subject = load(tmp_path)
    assert subject.anatomy.norm_path == "final_layer_norm"
    with torch.no_grad():
        expected = whole.text_model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(subject.capture(IDS, ["logits"])["logits"], expected)


def test_random_weights_follow_their_seed_and_leave_the_caller_s_random_state_alone(
    bert: Path, load: Callable[..., probekit.Subject]
) -> None:
    before = torch.get_rng_state()
    first, again, other = (load(bert, weights="random", weights_seed=seed).embedding_matrix for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, load(bert).embedding_matrix)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_and_quantisation_are_honoured(bert: Path, load: Callable[..., probekit.Subject]) -> None:
    assert load(bert, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(bert, dtype="float64", weights="random").model.dtype == torch.float64
    quantised = load(bert, quantization="int8", device="cpu").model
    assert type(quantised.get_submodule("encoder.layer.0.attention.self.query")).__name__ == "Linear8bitLt"


def test_a_tokenizer_is_loaded_where_there_is_one(
    bert: Path, tmp_path: Path, load: Callable[..., probekit.Subject]
) -> None:
    subject = load(bert)
    assert subject.tokens(subject.encode("The sky is blue")) == ["[CLS]", "the", "sky", "is", "blue", "[SEP]"]
    make("T5ForConditionalGeneration", T5).save_pretrained(tmp_path / "none")
    assert load(tmp_path / "none").tokenizer is None


def test_the_hash_of_a_folder_is_that_of_its_files_in_any_precision(
    bert: Path, load: Callable[..., probekit.Subject], tmp_path: Path
) -> None:
    facts = load(bert).facts
    assert (facts["source"], facts["weights_from"]) == ("plugin", "folder")
    for changed in ({"dtype": "bfloat16"}, {"quantization": "int8", "device": "cpu"}):
        assert load(bert, **changed).facts["weights_sha256"] == facts["weights_sha256"]
    file = bert / "model.safetensors"
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    assert load(bert).facts["weights_sha256"] != facts["weights_sha256"]

    causal = tmp_path / "causal"
    make("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_layer": 1, "n_embd": 8, "n_head": 1}).save_pretrained(causal)
    assert load(causal).facts["weights_sha256"] == probekit.load(causal).facts["weights_sha256"]


def test_random_weights_have_their_seed_among_the_facts(bert: Path, load: Callable[..., probekit.Subject]) -> None:
    facts = load(bert, weights="random", weights_seed=3).facts
    assert (facts["weights_from"], facts["weights_seed"]) == ("random numbers", 3)
    assert facts["weights_sha256"] != load(bert, weights="random").facts["weights_sha256"]


def test_the_commit_of_a_name_on_the_hub_is_known(bert: Path, tmp_path: Path) -> None:
    commit = "15ea56dee5df4983c59b2538573817e1667135e2"
    repository = tmp_path / "hub" / "models--someone--encoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(bert, repository / "snapshots" / commit, ignore=shutil.ignore_patterns("hub"))
    code = (
        "import probekit, probekit_encoders, sys\n"
        "plugins = probekit.Plugins(points=[])\n"
        "plugins.register(probekit_encoders)\n"
        "for revision in (None, sys.argv[1]):\n"
        "    facts = probekit.load('encoder:someone/encoder', revision=revision, plugins=plugins).facts\n"
        "    print(facts['source'], facts['weights_from'], facts['revision'])"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code, commit], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert said.stdout.splitlines() == [f"plugin hub {commit}"] * 2


def test_models_of_others_are_left_alone() -> None:
    assert probekit_encoders.probekit_load_model(probekit.ModelSpec(name="demo")) is None
    assert probekit_encoders.probekit_anatomy(make("BertModel", SMALL)) is None


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import probekit_encoders, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "spec", "error", "sentence"),
    [
        ("", {}, probekit.UsageError, "'encoder:' names no model"),
        ("BERT", {"depth": 2}, probekit.UsageError, "leave out --depth"),
        ("BERT", {"weights": "random", "quantization": "int8"}, probekit.UsageError, "leave out --quantization"),
        ("BERT", {"device_map": "nowhere"}, probekit.UsageError, "'nowhere' is no device map"),
        ("BERT", {"blocks": "encoder"}, probekit.ModelError, "not a list of"),
        ("/no/such/folder", {}, probekit.ModelError, "There is no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    name: str, spec: dict[str, Any], error: type[Exception], sentence: str, bert: Path,
    load: Callable[..., probekit.Subject],
) -> None:  # fmt: skip
    with pytest.raises(error, match=sentence):
        load(bert if name == "BERT" else name, **spec)


@pytest.mark.parametrize(
    ("class_name", "settings", "sentence"),
    [
        ("XLNetModel", {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, "reorders"),
        ("LEDModel", BART | {"attention_window": 4}, "LEDEncoder pad or reorder"),
        ("IBertModel", SMALL, "IBertModel embeds its tokens in no one module"),
        ("EncoderDecoderModel", {half: {"model_type": "bert"} | SMALL for half in ("encoder", "decoder")}, "Unrecog"),
    ],
)
def test_an_encoder_that_probekit_cannot_read_is_refused_in_a_sentence(
    class_name: str, settings: dict[str, Any], sentence: str, tmp_path: Path, load: Callable[..., probekit.Subject]
) -> None:
    make(class_name, settings).save_pretrained(tmp_path)
    with pytest.raises(probekit.ModelError, match=sentence) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_code_that_comes_with_the_weights_runs_only_if_allowed(
    tmp_path: Path, load: Callable[..., probekit.Subject]
) -> None:
    described = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "own.py").write_text("raise RuntimeError('the code ran')", encoding="utf-8")
    with pytest.raises(probekit.ModelError, match="runs only with --trust-remote-code"):
        load(tmp_path)
    with pytest.raises(probekit.ModelError, match="the code ran"):
        load(tmp_path, trust_remote_code=True)


def test_weights_that_do_not_fit_are_an_error_and_not_random_numbers(
    bert: Path, load: Callable[..., probekit.Subject]
) -> None:
    config = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}), encoding="utf-8")
    with pytest.raises(probekit.ModelError, match=r"encoder\.layer\.3\..* is missing"):
        load(bert)


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("gradient-inverter", {"steps": 5, "restarts": 2}),
        ("pseudo-inverse", {}),
        ("clamped-walk", {"steps": 2}),
        ("jacobian-spectrum", {"sites": "block.0"}),
        ("repetition", {}),
    ],
)
def test_the_bundled_analyses_run_on_an_encoder(
    plugin: str, options: dict[str, Any], bert: Path, tmp_path: Path
) -> None:
    run = probekit.run(
        model=f"encoder:{bert}",
        plugins=[plugin],
        prompts=["The sky is blue and the sea is green"],
        options={plugin: options},
        output=tmp_path / "run",
    )
    assert run.status == "done"
    assert run.result.metrics
    assert run.report_path.is_file()
