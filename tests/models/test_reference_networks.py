"""The reference networks: the formula, the weights, the embedding in front, the one length, and every wrong name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import probekit
from probekit.errors import ProbekitError, UsageError
from probekit.models.loading import state_hash
from probekit_plugins.reference_networks import build
from probekit_plugins.reference_networks.names import is_ours

PLUGINS = probekit.Plugins(points=[EntryPoint("reference-networks", "probekit_plugins.reference_networks", "probekit")])
KINDS = ["fc-invertible,tokens=3,width=4", "fc-narrow,tokens=3,width=4", "fc-token,width=4"]
IDS = torch.tensor([[5, 17, 3], [900, 5, 44]])


def load(name: str, **options: Any) -> probekit.Subject:
    return probekit.load(name, plugins=PLUGINS, **options)


def weights_of(subject: probekit.Subject) -> list[torch.Tensor]:
    """A₁, b₁, A₂, b₂."""
    return [parameter for name, parameter in subject.model.named_parameters() if name.startswith("blocks.")]


def plain(subject: probekit.Subject, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both activations as the source writes them down, one prompt after another and in fp64."""
    first, first_bias, second, second_bias = (weight.double() for weight in weights_of(subject))
    inner, outer = [], []
    for prompt in embeddings.double():
        vectors = [prompt.flatten()] if subject.anatomy.sequence else list(prompt)
        sums = [first @ vector + first_bias for vector in vectors]
        hidden = [x / 2 * (1 + torch.erf(x / math.sqrt(2))) for x in sums]
        inner.append(torch.cat(hidden).view(len(prompt), -1))
        outer.append(torch.cat([second @ x + second_bias for x in hidden]).view(len(prompt), -1))
    return torch.stack(inner), torch.stack(outer)


# --- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_activations_are_those_of_the_formula(name: str) -> None:
    subject = load(name, dtype="float64")
    inner, outer = plain(subject, subject.embed(IDS))
    captured = subject.capture(IDS, ["block.0", "block.1", "logits"])
    assert captured["block.0"].shape == (2, 3, 16)
    assert captured["block.1"].shape == (2, 3, 16 if "invertible" in name else 4)
    assert torch.allclose(captured["block.0"], inner, rtol=1e-12, atol=1e-15)
    assert torch.allclose(captured["block.1"], outer, rtol=1e-12, atol=1e-15)
    assert torch.equal(captured["logits"], captured["block.1"])
    assert subject.sites() == ["embedding", "block.0", "block.1", "logits"]


@pytest.mark.parametrize("site", ["block.0", "block.1", "logits"])
@pytest.mark.parametrize("name", KINDS)
def test_the_layer_map_has_the_bits_of_the_capture_and_the_gradient_of_the_formula(name: str, site: str) -> None:
    subject = load(name, dtype="float64")
    layer_map = subject.layer_map(site)
    captured = subject.capture(IDS, [site])[site]
    expected = subject.embed(IDS).requires_grad_()
    plain(subject, expected)[site != "block.0"].square().sum().backward()
    for _ in range(4):  # from the third call on, blocks are replayed without the model's forward
        embeddings = subject.embed(IDS).requires_grad_()
        activation = layer_map(embeddings)
        activation.square().sum().backward()
        assert torch.equal(activation, captured)
        assert torch.allclose(embeddings.grad, expected.grad, rtol=1e-9, atol=1e-12)
    if site != "logits":
        assert [route is not None for route in layer_map._routes.values()] == [True]


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_a_batch_share_nothing(name: str) -> None:
    subject = load(name)
    embeddings = subject.embed(IDS).requires_grad_()
    activation = subject.layer_map("block.1")(embeddings)
    alone = subject.capture(IDS[1:], ["block.1"])["block.1"]
    assert torch.allclose(activation[1:], alone, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(activation[0].sum(), embeddings)
    assert gradient[0].count_nonzero() == gradient[0].numel()
    assert gradient[1].count_nonzero() == 0


def test_tokens_are_mixed_where_the_prompt_is_flattened_and_not_where_each_is_read_by_itself() -> None:
    for name in KINDS:
        subject = load(name)
        embeddings = subject.embed(IDS).requires_grad_()
        (gradient,) = torch.autograd.grad(subject.layer_map("block.0")(embeddings)[0, 0].sum(), embeddings)
        reached = gradient[0].abs().sum(-1) > 0
        others = not name.startswith("fc-token")
        assert reached.tolist() == [True, others, others]
    assert subject.capture(torch.arange(40)[None], ["block.1"])["block.1"].shape == (1, 40, 4)


def test_an_edit_acts_on_what_follows() -> None:
    subject = load(KINDS[1])
    second_bias = weights_of(subject)[-1]
    with subject.edit("block.0", torch.zeros_like):
        edited = subject.capture(IDS, ["logits"])["logits"]
    assert torch.allclose(edited.flatten(1), second_bias.expand(2, -1))


def test_embeddings_decode_to_their_tokens() -> None:
    subject = load("fc-invertible,tokens=3,width=50")
    assert torch.equal(subject.decode(subject.embed(IDS), top_k=1, decoder="nearest")[..., 0], IDS)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_two_linear_layers_under_the_same_seed() -> None:
    for name, sizes in zip(KINDS, [(12, 48, 48), (12, 48, 12), (4, 16, 4)], strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            layers = [nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])]
        expected = [parameter for layer in layers for parameter in layer.parameters()]
        found = weights_of(load(name, weights_seed=7))
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_same_seed_gives_the_same_bits_and_the_callers_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load(KINDS[0], weights_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    hashes = [subject.facts["weights_sha256"] for subject in (first, again, other)]
    assert hashes[0] == hashes[1] == state_hash(first.model)
    assert hashes[0] != hashes[2]
    assert first.facts["source"] == "plugin"


def test_the_hash_of_a_state_tells_names_types_shapes_and_values_apart() -> None:
    def state(name: str, value: torch.Tensor) -> nn.Module:
        module = nn.Module()
        module.register_buffer(name, value)
        return module

    zeros = torch.zeros(4)
    states = [state("a", zeros), state("b", zeros), state("a", zeros.view(2, 2)), state("a", zeros.int())]
    states += [state("a", zeros.to("meta")), state("a", zeros + 1), state("a", torch.tensor(0, dtype=torch.bfloat16))]
    assert len({state_hash(module) for module in states}) == len(states)
    assert state_hash(state("a", torch.zeros(4, 2)[:, 0])) == state_hash(states[0])


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_every_precision_holds_the_values_that_were_drawn_in_fp32(default: torch.dtype) -> None:
    drawn = load(KINDS[1])
    torch.set_default_dtype(default)
    try:
        again, double = load(KINDS[1]), load(KINDS[1], dtype="float64")
    finally:
        torch.set_default_dtype(torch.float32)
    half = load(KINDS[1], dtype="bfloat16")
    for name, value in drawn.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
        assert torch.equal(double.model.state_dict()[name], value.double())
        assert torch.equal(half.model.state_dict()[name], value.bfloat16())
    assert double.facts["dtype"] == "float64"


def test_parameters_are_counted_before_anything_is_made() -> None:
    assert build.count_parameters("fc-invertible", 6, 50257, 768) - 50257 * 768 == 424_710_144
    for name in KINDS:
        subject = load(name)
        tokens = subject.anatomy.sequence
        assert subject.facts["parameters"] == build.count_parameters(name.partition(",")[0], tokens, 2048, 4)


# --- the embedding in front ------------------------------------------------------------------------------------------


def test_the_trained_embedding_of_a_model_stands_in_front_with_its_tokenizer() -> None:
    subject, demo = load("fc-token"), probekit.load("demo")
    assert torch.equal(subject.embedding_matrix, demo.embedding_matrix)
    assert subject.tokens(subject.encode("The sky is blue.")) == demo.tokens(demo.encode("The sky is blue."))


def test_random_weights_mean_a_random_embedding_before_the_same_network() -> None:
    trained, untrained = load("fc-token", weights_seed=3), load("fc-token", weights="random", weights_seed=3)
    expected = probekit.load("demo", weights="random", weights_seed=3).embedding_matrix
    assert torch.equal(untrained.embedding_matrix, expected)
    for one, other in zip(weights_of(trained), weights_of(untrained), strict=True):
        assert torch.equal(one, other)


def test_an_embedding_that_its_model_scales_comes_scaled(tmp_path: Path) -> None:
    config = Gemma3TextConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
        intermediate_size=16, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    subject, gemma = load(f"fc-narrow,tokens=2,embedding={tmp_path}"), probekit.load(str(tmp_path))
    ids = torch.tensor([[3, 30]])
    assert torch.equal(subject.embed(ids), gemma.embed(ids))
    assert not torch.equal(subject.embed(ids)[0, 0], gemma.anatomy.embedding.weight[3])  # type: ignore[index]
    assert subject.tokenizer is None
    assert subject.facts["tokenizer"].startswith("none (")


def test_a_width_means_a_random_embedding_with_the_tokenizer_of_the_embedded_model() -> None:
    subject = load("fc-token,width=50")
    assert subject.embedding_matrix.shape == (len(subject.tokenizer), 50)
    assert float(subject.embedding_matrix.mean()) == pytest.approx(0, abs=3e-4)
    assert float(subject.embedding_matrix.std()) == pytest.approx(0.02, rel=0.01)
    assert load("fc-token,width=50,vocabulary=3000").tokenizer is not None
    small = load("fc-token,width=50,vocabulary=512")
    assert (small.vocabulary, small.tokenizer) == (512, None)
    with pytest.raises(UsageError, match="no tokenizer; give the prompt as token ids"):
        small.encode("The sky is blue.")


# --- one length ------------------------------------------------------------------------------------------------------


def test_the_number_of_tokens_is_five_unless_it_is_given() -> None:
    assert load("fc-narrow,width=4").anatomy.sequence == 5
    assert load("fc-narrow,width=4,tokens=1").check_ids([3]).shape == (1, 1)
    assert load("fc-token,width=4").anatomy.sequence is None


def test_another_number_of_tokens_is_refused_in_one_sentence_wherever_it_comes_from() -> None:
    subject = load(KINDS[0])
    with pytest.raises(UsageError, match=r"^This model reads exactly 3 tokens; the prompt .* has 4\. Give a prompt of"):
        subject.encode("The sky is")
    for wrong in (IDS[:, :2], IDS.repeat(1, 2)):
        with pytest.raises(UsageError, match="takes sequences of length 3; it was given one of length"):
            subject.capture(wrong, ["block.0"])
        with pytest.raises(UsageError, match="takes sequences of length 3; it was given one of length"):
            subject.layer_map("block.0")(subject.embed(wrong))


# --- names -----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[int, str]] = {
    "fc-tokens": (4, "There is no reference network 'fc-tokens'; there are: fc-invertible, fc-narrow, fc-token. Did"),
    "fc-": (4, "there are: fc-invertible, fc-narrow, fc-token."),
    "fc-narrow,widht=5": (2, "no option 'widht'; its options are: tokens, embedding, width, vocabulary. Did you mean"),
    "fc-narrow,tokens=0": (2, "'tokens=0' is no size of a network; expected a whole number, 1 or more."),
    "fc-narrow,tokens=x": (2, "'tokens=x' is no size"),
    "fc-narrow,tokens=1e3": (2, "'tokens=1e3' is no size"),
    "fc-narrow,width=0": (2, "'width=0' is no size"),
    "fc-narrow,width=-4": (2, "'width=-4' is no size"),
    "fc-narrow,width=٣": (2, "'width=٣' is no size"),
    "fc-narrow,width=4,vocabulary=0": (2, "'vocabulary=0' is no size"),
    "fc-narrow,tokens": (2, "'tokens' in 'fc-narrow,tokens' is no option; expected KEY=VALUE"),
    "fc-narrow,": (2, "expected KEY=VALUE"),
    "fc-narrow,embedding=": (2, "expected KEY=VALUE"),
    "fc-narrow,tokens=2,tokens=3": (2, "gives tokens twice; give it once."),
    "fc-narrow,width=4,embedding=demo": (2, "gives both a width, of a random embedding, and the embedding of a model"),
    "fc-narrow,vocabulary=9": (2, "without its width; add width=…, or leave out vocabulary=9."),
    "fc-token,tokens=5": (2, "takes any number of them; leave out tokens=5."),
    "fc-token,embedding=fc-token": (2, "asks for the embedding of a reference network; name the language model"),
    "fc-token,embedding=no/such/folder": (4, "There is no folder 'no/such/folder'; give a model folder"),
    "fc-invertible,width=100000": (4, "fewer tokens than 5 or a smaller width or a smaller vocabulary than 2048."),
    "fc-token,width=4,vocabulary=999999999999": (4, "would have 4,000,000,000,144 parameters"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_one_sentence(name: str) -> None:
    code, sentence = WRONG[name]
    with pytest.raises(ProbekitError) as raised:
        load(name)
    assert sentence in str(raised.value)
    assert raised.value.exit_code == code


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quantization": "int8"}, "takes no --quantization"),
        ({"device_map": "auto"}, "takes no --device-map"),
        ({"depth": 1}, "takes no --depth"),
        ({"blocks": "blocks"}, "takes no --blocks"),
        ({"revision": "main"}, "has a random embedding, which has no revision"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load("fc-token,width=4", **options)


def test_a_network_beyond_the_memory_there_is_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "memory_available", lambda: 12_000_000)
    with pytest.raises(probekit.ModelError) as raised:
        load("fc-invertible,tokens=2")
    parameters = 2048 * 192 + 20 * 384**2 + 8 * 384
    assert f"'fc-invertible,tokens=2' would have {parameters:,} parameters, 0.0 GB while" in str(raised.value)
    assert str(raised.value).endswith("give it fewer tokens than 2 or an embedding of a smaller width.")
    monkeypatch.setattr(build, "memory_available", lambda: 4 * parameters)
    assert load("fc-invertible,tokens=2").facts["parameters"] == parameters
    with pytest.raises(probekit.ModelError):
        load("fc-invertible,tokens=2", dtype="float64")


def test_the_memory_there_is_is_found() -> None:
    available = build.memory_available()
    assert available is None or 2**26 < available < 2**50


def test_a_folder_of_that_name_and_a_name_on_the_hub_are_left_to_transformers(
    tiny_gpt2: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_gpt2(), tmp_path / "fc-token")
    monkeypatch.chdir(tmp_path)
    assert load("fc-token").facts["architecture"] == "GPT2LMHeadModel"
    assert load("fc-narrow,embedding=fc-token").width == 32
    assert [is_ours(name) for name in ("fc-token", "fc-org/model", "demo", "fc-narrow,embedding=a/b")] == [
        False, False, False, True,
    ]  # fmt: skip


def test_other_models_are_left_alone_without_importing_torch(probekit_process: Any) -> None:
    code = """
import sys
from probekit import ModelSpec
from probekit_plugins import reference_networks as plugin
assert plugin.probekit_load_model(ModelSpec(name="gpt2")) is None
assert plugin.probekit_anatomy(object()) is None
assert "torch" not in sys.modules
"""
    ended = probekit_process(code=code)
    assert ended.code == 0, ended.err


# --- the command line ------------------------------------------------------------------------------------------------


def test_it_is_listed_and_can_be_shown(probekit_cli: Any) -> None:
    assert "\nreference-networks  [probekit 0.2.0]\n" in probekit_cli("plugins").out
    shown = json.loads(probekit_cli("models", "show", "fc-invertible,tokens=6,width=16", "--json").out)
    parts = shown["anatomy"]
    assert (parts["embedding"]["path"], shown["vocabulary"], shown["width"]) == ("embedding", 2048, 16)
    assert parts["blocks"] == {"path": "blocks", "count": 2, "classes": ["Layer"]}
    assert (parts["norm"], parts["unembedding"]) == (None, None)
    assert (shown["context"], shown["loaded"]["conditioned_on_ids"]) == (6, False)
    shown = json.loads(probekit_cli("models", "show", "fc-token,width=16,vocabulary=9", "--json").out)
    assert shown["tokenizer"]["why"] == "none (the plugin that loads the model gives none)"


def test_a_run_ends_with_a_report_and_a_command_that_repeats_it(probekit_cli: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run = ["run", "--plugin", "gradient-inverter", "-o", "steps=3", "-o", "restarts=2", "-o", "sites=blocks"]
    ended = probekit_cli(*run, "--model", "fc-token,width=32", "--output", output, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["status"] == "done"
    assert (output / "report.html").is_file()
    manifest = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert "--model fc-token,width=32 " in manifest["command"]
    assert manifest["model"]["weights_sha256"] == load("fc-token,width=32").facts["weights_sha256"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--model", "fc-tokens"], 4, "There is no reference network 'fc-tokens'"),
        (["--model", "fc-token,tokens=3"], 2, "leave out tokens=3"),
        (
            ["--model", "fc-narrow,width=4", "--prompt", "The sky is blue."],
            2,
            "reads exactly 5 tokens; the prompt 'The",
        ),
        (["--model", "fc-narrow,width=4", "--input-ids", "1,2"], 2, "the prompt [1, 2] has 2. Give a prompt of 5, or"),
    ],
)
def test_what_is_wrong_has_its_exit_code_and_leaves_nothing_behind(
    arguments: list[str], code: int, sentence: str, probekit_cli: Any, tmp_path: Path
) -> None:
    ended = probekit_cli("run", *arguments, "--output", tmp_path / "run")
    assert ended.code == code
    assert sentence in ended.sentence
    assert not (tmp_path / "run").exists()


def test_the_prompt_comes_back_from_the_last_layer_of_the_invertible_network(probekit_cli: Any, tmp_path: Path) -> None:
    ended = probekit_cli(
        "run", "--model", "fc-invertible,tokens=3", "--prompt", "The sky", "--output", tmp_path / "run", "--json",
        "-o", "sites=block.1", "-o", "steps=150", "-o", "restarts=2", "-o", "next_token=false",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    metrics = json.loads(ended.out)["analyses"]["gradient-inverter"]["metrics"]
    assert metrics["block.1/token_accuracy_min"] == 1


def test_an_inversion_leaves_the_network_as_it_was(assert_untouched: Any) -> None:
    subject = load("fc-narrow,width=4")
    inverter = probekit.Plugins().analysis("gradient-inverter")
    prompt = probekit.Prompt("", subject.check_ids([1, 2, 3, 4, 5]), list("abcde"))
    with assert_untouched(subject.model):
        inverter(inverter.options_model(steps=4, restarts=2)).run(subject, [prompt])
