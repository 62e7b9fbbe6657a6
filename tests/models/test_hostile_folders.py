"""Model folders from elsewhere: damaged, hostile, or asking for more than there is: one sentence each, or harmless."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import probekit
from probekit.models.configs import MOST, check_config
from probekit.models.skeleton import skeleton
from probekit.models.spec import parse_spec

WEIGHTS, WEIGHT = "model.safetensors", "transformer.h.0.mlp.c_fc.weight"
Change = Callable[[Path], object]


@pytest.fixture
def folder(tiny_gpt2: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of two blocks that a test may damage."""
    place = tmp_path / "model"
    shutil.copytree(tiny_gpt2(n_layer=2), place)
    return place


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """An object in a JSON file is another afterwards."""

    def apply(place: Path) -> None:
        path = place / name
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")

    return apply


def config(**values: Any) -> Change:
    return changed("config.json", lambda document: document.update(values))


def holds(name: str, content: bytes) -> Change:
    return lambda place: (place / name).write_bytes(content)


def header(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


def weight(change: Callable[[torch.Tensor], torch.Tensor], name: str = WEIGHT) -> Change:
    def apply(place: Path) -> None:
        state = load_file(place / WEIGHTS)
        state[name] = change(state[name])
        save_file(state, place / WEIGHTS, {"format": "pt"})

    return apply


def index(files: object, metadata: bool = True) -> Change:
    """The weights in one shard, and an index that names others."""

    def apply(place: Path) -> None:
        (place / WEIGHTS).rename(place / "a.safetensors")
        document = {"weight_map": files, **({"metadata": {}} if metadata else {})}
        (place / f"{WEIGHTS}.index.json").write_text(json.dumps(document), encoding="utf-8")

    return apply


def pickled(place: Path) -> None:
    torch.save(load_file(place / WEIGHTS), place / "pytorch_model.bin")
    (place / WEIGHTS).unlink()


def pickled_shards(place: Path) -> None:
    pickled(place)
    state = torch.load(place / "pytorch_model.bin", weights_only=True)
    (place / "pytorch_model.bin").rename(place / "part.bin")
    document = {"metadata": {}, "weight_map": dict.fromkeys(state, "part.bin")}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(document), encoding="utf-8")


def pickled_as_adapter(place: Path) -> None:
    pickled(place)
    (place / "pytorch_model.bin").rename(place / "adapter_model.bin")
    config(transformers_weights="adapter_model.bin")(place)


def pickled_behind_an_index(place: Path) -> None:
    pickled(place)
    document = {"metadata": {}, "weight_map": {WEIGHT: "pytorch_model.bin"}}
    (place / f"{WEIGHTS}.index.json").write_text(json.dumps(document), encoding="utf-8")


def instead(name: str, make: Callable[[Path], object]) -> Change:
    """Something else in the place of a file."""

    def apply(place: Path) -> None:
        (place / name).unlink()
        make(place / name)

    return apply


def sparse(name: str) -> Change:
    """A file of 4 TiB that takes no place."""

    def apply(place: Path) -> None:
        (place / name).touch()
        os.truncate(place / name, 1 << 42)

    return apply


def listening(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(place / "a.sock"))  # at most 108 characters


def distributed(place: Path) -> None:
    (place / WEIGHTS).rename(place / "shard-00001-model-00001-of-00001.safetensors")


INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
REFUSED: dict[str, tuple[Change, str]] = {
    # weights: their files
    "cut off": (lambda place: os.truncate(place / WEIGHTS, 500), "damaged or incomplete"),
    "empty": (holds(WEIGHTS, b""), "damaged or incomplete"),
    "header beyond the file": (holds(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "damaged or incomplete"),
    "header that is deep": (holds(WEIGHTS, header(DEEP)), "damaged or incomplete"),
    "a quadrillion numbers": (
        holds(WEIGHTS, header({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}})),
        "damaged or incomplete",
    ),
    "shape beyond 64 bits": (
        holds(WEIGHTS, header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"0000")),
        "damaged or incomplete",
    ),
    "tensors that overlap": (
        holds(
            WEIGHTS,
            header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"0000"),
        ),
        "damaged or incomplete",
    ),
    "a pipe": (instead(WEIGHTS, os.mkfifo), "neither a file nor a folder"),
    "an endless device": (instead("tokenizer.json", lambda path: path.symlink_to("/dev/zero")), "neither a file nor"),
    "a link to nowhere": (instead(WEIGHTS, lambda path: path.symlink_to("nowhere")), "leads nowhere"),
    "a folder as weights": (instead(WEIGHTS, Path.mkdir), "no weights that can be loaded"),
    "distributed": (distributed, "distributed checkpoint"),
    # weights: an index
    "index that climbs out": (index({"a": "../model/a.safetensors"}), "'../model/a.safetensors'; expected safetensors"),
    "index with a name of a megabyte": (index({"a": "../" + "x" * 10**6}), "xxx…; expected safetensors"),
    "index that is absolute": (index({"a": "/etc/a.safetensors"}), "'/etc/a.safetensors'; expected safetensors"),
    "shard that is missing": (index({"a": "a.safetensors", "b": "b.safetensors"}), "'b.safetensors', which"),
    "index without a map": (index([]), "no weight_map"),
    "index of numbers": (index({"a": 1}), "no weight_map"),
    "index without metadata": (index({"a": "a.safetensors"}, metadata=False), "no metadata"),
    "index that is cut off": (
        lambda place: [index({})(place), (place / f"{WEIGHTS}.index.json").write_text("{")],
        "is not JSON",
    ),
    # weights: what is in them
    "another shape": (weight(lambda value: value[:3].contiguous()), "do not fit its config"),
    "whole numbers": (weight(lambda value: value.to(torch.int64)), f"{WEIGHT} of"),
    "booleans": (weight(lambda value: value > 0), "saved as BOOL"),
    "bytes": (weight(lambda value: value.to(torch.uint8)), "saved as U8"),
    "complex numbers": (weight(lambda value: value.to(torch.complex64)), "saved as C64"),
    "not quantised, though it says so": (
        config(quantization_config=INT8),
        "says that its weights are quantised already (int8)",
    ),
    # pickle
    "pickled": (pickled, "say --allow-pickle"),
    "pickled shards": (pickled_shards, "say --allow-pickle"),
    "pickled, named by the config": (pickled_as_adapter, "'adapter_model.bin' as its weights"),
    "pickled, named by an index": (pickled_behind_an_index, "names the file 'pytorch_model.bin'"),
    # what names another model, or a file elsewhere
    "an adapter": (
        changed("adapter_config.json", lambda document: document.update(base_model_name_or_path="someone/else")),
        "PEFT adapter",
    ),
    "weights elsewhere": (config(transformers_weights="../elsewhere.safetensors"), "as its weights; expected"),
    # the config
    "config of a list": (holds("config.json", b"[1]"), "holds a list"),
    "config that is deep": (holds("config.json", DEEP), "nested too deeply"),
    "config that is quite deep": (
        holds("config.json", b'{"model_type": "gpt2", "a":' + b"[" * 900 + b"]" * 900 + b"}"),
        "RecursionError",
    ),
    "config not in UTF-8": (holds("config.json", b'{"a":"\xff"}'), "not text in UTF-8"),
    "config that is empty": (holds("config.json", b""), "is not JSON"),
    "config of no model": (holds("config.json", b"{}"), "Unrecognized model"),
    "config of another program's model": (config(model_type="evil\x1b[31m</script>"), "not a causal language model"),
    "config with a method's name": (config(get_text_config="x"), "'get_text_config', which is no setting"),
    "config with a number beyond 64 bits": (config(vocab_size=10**30), "at most 64 bits"),
    "config with a number of 4400 digits": (
        holds("config.json", b'{"model_type": "gpt2", "vocab_size": 1' + b"0" * 4400 + b"}"),
        "is not JSON",
    ),
    "config with text as a number": (config(vocab_size="many"), "vocab_size"),
    "config with half a block": (config(n_layer=2.5), "n_layer"),
    "config below nothing": (config(vocab_size=-1), "negative dimension"),
    "dtype that is a function": (config(dtype="load"), "dtype = 'load'"),
    "dtype of whole numbers": (config(dtype="int8"), "dtype = 'int8'"),
    "modules by a pattern that never ends": (
        config(quantization_config={**INT8, "llm_int8_skip_modules": ["((a|[a-z.0-9_])+)+!"]}),
        "in llm_int8_skip_modules; expected the name",
    ),
    "widths by a pattern that never ends": (
        config(quantization_config={"quant_method": "gemma", "module_quant_configs": {"((a|[a-z])+)+!": {}}}),
        "in module_quant_configs; expected 3 repetitions",
    ),
    "modules by many stars": (
        config(quantization_config={**INT8, "modules_to_not_convert": [".*" * 30 + "x"]}),
        "in modules_to_not_convert; expected the name",
    ),
    "quantised by a word": (config(quantization_config="x"), "could not be loaded"),
    # the config: what it asks for, beside weights of a few thousand numbers
    "a billion blocks": (config(n_layer=10**9), "n_layer = 1000000000"),
    "a billion labels": (config(num_labels=10**9), "num_labels = 1000000000"),
    "a trillion tokens": (config(vocab_size=10**12), "000,000,0"),
    "two billion wide": (config(n_embd=2 * 10**9), "more numbers than any memory"),
    "a trillion positions": (config(n_positions=10**12), "asks for 32,000,000,0"),
    "a quadrillion inside": (config(n_inner=10**15), "asks for 130,000,000,000,"),
    # files beside it
    "generation config that is cut off": (holds("generation_config.json", b"{"), "'generation_config.json' of"),
    "generation config of a list": (holds("generation_config.json", b"[]"), "holds a list"),
    "tokenizer config that is cut off": (holds("tokenizer_config.json", b"{"), "'tokenizer_config.json' of"),
    "JSON that is too long": (lambda place: os.truncate(place / "tokenizer.json", 1 << 29), "512 MiB"),
    "chat template that is too long": (sparse("chat_template.jinja"), "4.0 TiB"),
    "vocabulary that is too long": (sparse("vocab.txt"), "4.0 TiB"),
    "chat template that is a pipe": (
        lambda place: [
            (place / "additional_chat_templates").mkdir(),
            os.mkfifo(place / "additional_chat_templates" / "x.jinja"),
        ],
        "neither a file nor a folder",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_sentence_at_once_and_leaves_nothing_behind(
    case: str, folder: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    change, fragment = REFUSED[case]
    change(folder)
    began = time.perf_counter()
    small = ["run", "--plugin", "activation-statistics", "--input-ids", "1,2"]
    ended = probekit_cli(*small, "--model", folder, "--output", tmp_path / "run")
    assert ended.code == 4, ended.err
    assert fragment in ended.sentence
    assert ended.out == ""
    assert "\x1b" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert time.perf_counter() - began < 30


INERT: dict[str, Change] = {
    "attention from the hub": config(attn_implementation="kernels-community/flash-attn2"),
    "attention from the hub, of its parts": config(attn_implementation={"": "someone/kernel"}),
    "attention of the hub, by its inner name": config(_attn_implementation="someone/kernel@main:attend"),
    "flash attention": config(attn_implementation="flash_attention_2"),
    "experts from the hub": config(experts_implementation="deepgemm"),
    "kernels": config(use_kernels=True, kernel_config={"RMSNorm": "someone/kernel:RMSNorm"}),
    "patches": config(fusion_config={"anything": True}),
    "distribution": config(distributed_config={"tp_plan": "auto"}),
    "code that this model does not need": config(auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "code in another repository": config(auto_map={"AutoConfig": "someone/else--evil.Config"}),
    "another name": config(_name_or_path="someone/else"),
    "generation by code of the hub": changed(
        "generation_config.json", lambda document: document.update(custom_generate="someone/else")
    ),
    "a tokenizer elsewhere": changed(
        "tokenizer_config.json", lambda document: document.update(tokenizer_file="/dev/zero", vocab_file="/dev/zero")
    ),
    "a tokenizer of code": changed(
        "tokenizer_config.json", lambda document: document.update(auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    ),
    "a template of code": changed(
        "tokenizer_config.json", lambda document: document.update(chat_template="{{ ''.__class__.__mro__ }}")
    ),
    "code that lies there": holds("evil.py", b"raise SystemExit(1)"),
    "code to generate by": lambda place: [
        (place / "custom_generate").mkdir(),
        (place / "custom_generate" / "generate.py").write_text("raise SystemExit(1)"),
    ],
    "a length without end": config(model_max_length=1000000000000000019884624838656),
    "a seed of 64 bits": config(task_specific_params={"sampling": {"seed": 2**64 - 1}}),
    "a label that is a method": config(id2label={"0": "update"}, label2id={"update": 0}),
    "a count that no config knows": config(max_blocks=200_000),
    "a type for each part": config(dtype={"": "float32"}),
    "a text that leads nowhere": lambda place: (place / "README.md").symlink_to("nowhere"),
    "a socket": listening,
    "data that is long": sparse("train_data.json"),
    "other weights that are long": sparse("extra.bin"),
    "other weights that are a pipe": lambda place: os.mkfifo(place / "extra.bin"),
    "weights behind a link": lambda place: [
        (place / WEIGHTS).rename(place.parent / "elsewhere"),
        (place / WEIGHTS).symlink_to(place.parent / "elsewhere"),
    ],
}


@pytest.mark.parametrize("case", INERT)
def test_what_names_others_or_is_beside_it_changes_no_number(case: str, folder: Path) -> None:
    ids = torch.tensor([[5, 17, 3, 60]])
    expected = probekit.load(folder).capture(ids, ["logits"])["logits"]
    INERT[case](folder)
    subject = probekit.load(folder)
    assert torch.equal(subject.capture(ids, ["logits"])["logits"], expected)
    assert subject.model.config._attn_implementation in ("sdpa", "eager")
    assert subject.encode("The sky").shape[1] > 1


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (config(n_layer=MOST + 1), f"more than {MOST:,}"),
        (config(n_positions=10**12), "this machine has"),
        (config(vocab_size=10**12), "this machine has"),
        (config(n_embd=2 * 10**9), "more numbers than any memory"),
    ],
)
def test_random_weights_that_no_machine_holds_are_refused_before_they_are_made(
    change: Change, fragment: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(probekit.ModelError, match=fragment):
        probekit.load(folder, weights="random")


def test_sizes_of_real_models_are_no_counts_of_parts() -> None:
    sizes = {"shared_expert_intermediate_size": 20_480, "block_size": 65_536, "codebook_size": 262_144}
    kept = {"modules_to_not_convert": ["lm_head", "model.layers.*.self_attn"], "llm_int8_skip_modules": None}
    widths = {r"(mlp|attn)\.\w+_proj$": {"num_bits": 4}}
    check_config({"quantization_config": {**kept, "module_quant_configs": widths}}, "a model")
    check_config({**sizes, "num_hidden_layers": 126, "max_window_layers": 80, "dtype": "bfloat16"}, "a model")
    for key in ("n_layer", "num_hidden_layers", "decoder_layers", "n_routed_experts", "num_attention_heads", "depth"):
        with pytest.raises(probekit.ModelError, match=key):
            check_config({"text_config": {key: MOST + 1}}, "a model")


@pytest.mark.slow
def test_no_config_that_transformers_has_is_refused() -> None:
    from transformers import CONFIG_MAPPING

    checked = 0
    for kind, config_class in CONFIG_MAPPING.items():
        try:
            text = config_class().to_json_string(use_diff=False)
        except Exception:  # some have no defaults, or need another package
            continue
        check_config(json.loads(text), kind)
        checked += 1
    assert checked > 300


def test_a_model_of_too_many_modules_ends_however_its_config_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probekit.models.declared_sizes.MODULES", 20)
    with pytest.raises(probekit.ModelError, match="more than 20 modules"):
        skeleton(parse_spec(name=str(folder)))


def test_code_of_its_own_is_one_sentence_and_is_not_run(folder: Path) -> None:
    config(model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})(folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n", encoding="utf-8")
    with pytest.raises(probekit.ModelError, match="not run unless you allow it with --trust-remote-code"):
        probekit.load(folder)
    assert not (folder / "ran").exists()


def test_code_in_another_repository_is_named_where_the_network_is_not_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("probekit.models.failures._offline", lambda: False)
    config(model_type="evil", auto_map={"AutoConfig": "someone/else--evil.Config"})(folder)
    with pytest.raises(probekit.ModelError, match="of another repository, which is not in the hub's cache"):
        probekit.load(folder, trust_remote_code=True)


# --- pickle -----------------------------------------------------------------------------------------------------------


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("change", [pickled, pickled_shards])
def test_with_allow_pickle_pickled_weights_are_the_same_model(change: Change, folder: Path) -> None:
    ids = torch.tensor([[5, 17, 3, 60]])
    expected = probekit.load(folder).capture(ids, ["logits"])["logits"]
    change(folder)
    subject = probekit.load(folder, allow_pickle=True)
    assert torch.equal(subject.capture(ids, ["logits"])["logits"], expected)


@pytest.mark.parametrize("allowed", [False, True])
def test_code_in_a_pickle_is_not_run_even_where_pickle_is_allowed(allowed: bool, folder: Path) -> None:
    pickled(folder)
    evil = {"transformer.wte.weight": Evil(folder / "ran")}
    for content in (pickle.dumps(evil), None):
        if content is None:
            torch.save(evil, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(probekit.ModelError):
            probekit.load(folder, allow_pickle=allowed)
        assert not (folder / "ran").exists()


def test_a_config_and_a_key_without_the_flag_are_what_they_were() -> None:
    assert "allow_pickle" not in probekit.ModelSpec().model_dump()
    assert probekit.ModelSpec(allow_pickle=True).model_dump()["allow_pickle"] is True


# --- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_by_the_run(
    value: float, folder: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    weight(lambda tensor: tensor.index_fill(0, torch.tensor([1]), value))(folder)
    small = ["--plugin", "gradient-inverter", "-o", "steps=2", "-o", "restarts=1", "-o", "sites=block.0"]
    ended = probekit_cli("run", "--model", folder, *small, "--output", tmp_path / "run")
    assert ended.code == 1
    assert f"because the weight {WEIGHT} holds NaN or infinity" in ended.sentence


# --- tokenizers -------------------------------------------------------------------------------------------------------


def added(place: Path, *tokens: tuple[int, str]) -> None:
    def change(document: dict[str, Any]) -> None:
        for number, text in tokens:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
            document["added_tokens"].append({"id": number, "content": text, **flags})

    changed("tokenizer.json", change)(place)


NO_TOKENIZER: dict[str, Change] = {
    "cut off": holds("tokenizer.json", b"{"),
    "not UTF-8": holds("tokenizer.json", b"\xff"),
    "deep": holds("tokenizer.json", b"[" * 100_000),
    "empty": holds("tokenizer.json", b"{}"),
    "of another version": changed("tokenizer.json", lambda document: document.update(version="9")),
    "token below zero": lambda place: added(place, (-1, "<evil>")),
    "token beyond 32 bits": lambda place: added(place, (2**40, "<evil>")),
    "special token that is a number": changed("tokenizer_config.json", lambda document: document.update(bos_token=5)),
    "no words": changed(
        "tokenizer.json",
        lambda document: [document["model"].update(vocab={}, merges=[]), document.update(added_tokens=[])],
    ),
}


@pytest.mark.parametrize("case", NO_TOKENIZER)
def test_a_damaged_tokenizer_leaves_a_model_that_takes_token_ids(case: str, folder: Path) -> None:
    NO_TOKENIZER[case](folder)
    subject = probekit.load(folder)
    assert subject.tokenizer is None
    assert str(subject.facts["tokenizer"]).startswith("none (")
    with pytest.raises(probekit.UsageError, match="has no tokenizer; give the prompt as token ids"):
        subject.encode("The sky")
    assert subject.check_ids([1, 2]).tolist() == [[1, 2]]


@pytest.mark.parametrize("kind", ["gpt2", "mbart", "gemma3_text", "xglm"])
def test_the_empty_tokenizer_that_is_made_of_no_files_is_none(kind: str, folder: Path) -> None:
    from probekit.models.sources import load_tokenizer
    from probekit.models.trust import reading_model

    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    with reading_model(str(folder), parse_spec(name=str(folder))) as given:
        tokenizer, reason = load_tokenizer(given)
    assert tokenizer is None
    assert reason.startswith("none (")


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_a_sentence_for_prompts_that_use_them(
    folder: Path, probekit_cli: Any, tmp_path: Path
) -> None:
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    added(folder, (rows, "<evil>"))
    small = ["run", "--model", folder, "--plugin", "activation-statistics", "--output", tmp_path / "run"]
    ended = probekit_cli(*small, "--prompt", "The sky is <evil>")
    assert ended.code == 2
    assert (
        ended.sentence == f"The token id {rows} is outside the vocabulary of this model; ids go from 0 to {rows - 1}."
    )
    assert not (tmp_path / "run").exists()
    assert probekit_cli(*small, "--prompt", "The sky").code == 0


HOSTILE = ["a\0b\x1b[31m</script>\u202e", "x" * 10**6, "\ud800", "\r\n\u2028", ""]


@pytest.mark.parametrize("text", HOSTILE, ids=["escapes", "a megabyte", "half a pair", "lines", "nothing"])
def test_hostile_texts_of_tokens_are_only_texts(text: str, folder: Path, probekit_cli: Any, tmp_path: Path) -> None:
    changed("config.json", lambda document: document.update(vocab_size=document["vocab_size"] + 8))(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    added(folder, (rows - 8, text))
    small = ["run", "--model", folder, "--weights", "random", "--plugin", "activation-statistics"]
    ended = probekit_cli(*small, "--input-ids", f"1,{rows - 8},2", "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out + ended.err
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert b"\x1b" not in page
    assert b"\0" not in page
    assert len(page) < 4_000_000


def test_a_tokenizer_that_fails_on_a_prompt_is_a_sentence(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def change(document: dict[str, Any]) -> None:
        pattern = {"Regex": "(a+)+$"}  # exponential in the number of letters
        document["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    changed("tokenizer.json", change)(folder)
    subject = probekit.load(folder)
    with pytest.raises(probekit.ModelError, match="The tokenizer of this model cannot read the prompt 'aaaa"):
        subject.encode("a" * 40 + "b")
    capfd.readouterr()  # what Rust says by itself


def test_a_tokenizer_of_two_words_is_one(folder: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"0": 0, "1": 1, "<unk>": 2}, "unk_token": "<unk>"}
    changed("tokenizer.json", lambda document: document.update(model=model, added_tokens=[]))(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    document.update(normalizer=None, pre_tokenizer={"type": "Whitespace"}, post_processor=None, decoder=None)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
    assert probekit.load(folder).encode("0 1 1").tolist() == [[0, 1, 1]]


def test_a_token_that_two_words_share_is_one_token(folder: Path) -> None:
    changed("tokenizer.json", lambda document: document["model"]["vocab"].update(zz1=5, zz2=5))(folder)
    subject = probekit.load(folder)
    ids = subject.encode("The sky")
    assert len(subject.tokens(ids)) == ids.shape[1]
