"""Every architecture, tiny and with random weights: its anatomy, capture, layer map, gradients, early stop and edit.

The reference is always a plain forward of a copy of the model, read by hooks of the test's own.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import probekit
from probekit.errors import UsageError
from probekit_plugins.jacobian import Jacobian
from tests.forward.tiny import make

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_LIKE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
HEADS_OF_8 = {**LLAMA_LIKE, "head_dim": 8}
GPT2_LIKE = {
    "vocab_size": 80,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}


@dataclass(frozen=True)
class Architecture:
    """A tiny model and where its class is known to keep its parts."""

    name: str
    config: dict[str, Any]
    blocks: str
    embedding: str
    norm: str | None
    unembedding: str = "lm_head"
    first_hidden_state: int = 1  # which of transformers' hidden_states is the output of block 0

    def make(self) -> nn.Module:
        name = self.name.split("-")[0]
        config_class = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")
        suffix = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
        return make(getattr(transformers, name + suffix), config_class(**self.config))


def llama_like(name: str, config: dict[str, Any], norm: str = "model.norm") -> Architecture:
    return Architecture(name, config, "model.layers", "model.embed_tokens", norm)


def gpt2_like(name: str, config: dict[str, Any]) -> Architecture:
    return Architecture(name, config, "transformer.h", "transformer.wte", "transformer.ln_f")


def opt(name: str, norm: str | None = "model.decoder.final_layer_norm", **config: Any) -> Architecture:
    return Architecture(name, {**OPT, **config}, "model.decoder.layers", "model.decoder.embed_tokens", norm)


ARCHITECTURES = [
    gpt2_like("GPT2", GPT2_LIKE),
    gpt2_like("GPTBigCode", GPT2_LIKE),
    gpt2_like("GPTJ", {**GPT2_LIKE, "rotary_dim": 4}),
    gpt2_like("CodeGen", {**GPT2_LIKE, "rotary_dim": 4}),
    gpt2_like(
        "GPTNeo",
        {
            "vocab_size": 80,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    Architecture(
        "GPTNeoX",
        {**SIZES, "intermediate_size": 48},
        "gpt_neox.layers",
        "gpt_neox.embed_in",
        "gpt_neox.final_layer_norm",
    ),
    Architecture(
        "Bloom",
        {"vocab_size": 80, "hidden_size": 32, "n_layer": 3, "n_head": 4},
        "transformer.h",
        "transformer.word_embeddings",
        "transformer.ln_f",
    ),
    Architecture("Falcon", SIZES, "transformer.h", "transformer.word_embeddings", "transformer.ln_f"),
    Architecture(
        "Falcon-parallel",
        {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
        "transformer.h",
        "transformer.word_embeddings",
        "transformer.ln_f",
    ),
    Architecture(
        "Mpt",
        {"vocab_size": 80, "d_model": 32, "n_layers": 3, "n_heads": 4},
        "transformer.blocks",
        "transformer.wte",
        "transformer.norm_f",
    ),
    opt("OPT"),
    opt("OPT-projected", word_embed_proj_dim=16),
    # OPT-350m: norms after the attention and the MLP, and none after the last block.
    opt("OPT-normed-after", norm=None, do_layer_norm_before=False, word_embed_proj_dim=16),
    # A norm of the embeddings beside the blocks, and none after the last block.
    Architecture(
        "Bart",
        {
            "vocab_size": 80,
            "d_model": 32,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
        },
        "model.decoder.layers",
        "model.decoder.embed_tokens",
        None,
    ),
    llama_like("Llama", LLAMA_LIKE),
    llama_like("Mistral", {**LLAMA_LIKE, "sliding_window": 4}),
    # Three experts in each of three blocks: lists as long as the list of blocks.
    llama_like("Mixtral", {**LLAMA_LIKE, "num_local_experts": 3}),
    llama_like("Qwen2", LLAMA_LIKE),
    llama_like("Qwen3", HEADS_OF_8),
    llama_like("Gemma", HEADS_OF_8),
    llama_like(
        "Gemma2",
        {**HEADS_OF_8, "sliding_window": 4, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5},
    ),
    llama_like("Gemma3", {**HEADS_OF_8, "sliding_window": 4}),
    llama_like("Phi", {**SIZES, "intermediate_size": 48}, norm="model.final_layernorm"),
    llama_like("Phi3", LLAMA_LIKE),
    llama_like("StableLm", LLAMA_LIKE),
    llama_like("Cohere", LLAMA_LIKE),
    llama_like("Olmo", LLAMA_LIKE),  # its norms have no parameters
    llama_like("Olmo2", LLAMA_LIKE),
    Architecture(
        "Mamba",
        {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
        "backbone.layers",
        "backbone.embeddings",
        "backbone.norm_f",
        first_hidden_state=0,
    ),
]
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)

IDS = torch.tensor([[5, 17, 3, 64, 9, 31], [70, 8, 8, 41, 22, 79]])
MASKS = {
    "no mask": None,
    "padded on the right": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
    "padded on the left": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
}


@cache
def made(architecture_index: int) -> nn.Module:
    return ARCHITECTURES[architecture_index].make()


def model_of(architecture: Architecture) -> nn.Module:
    """A copy for this test alone."""
    return copy.deepcopy(made(ARCHITECTURES.index(architecture)))


def front(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def plain_forward(architecture: Architecture, model: nn.Module, **inputs: Any) -> dict[str, torch.Tensor]:
    """What each part returns in a plain forward, by site, read by the test's own hooks."""
    seen: dict[str, torch.Tensor] = {}
    parts = {"embedding": model.get_submodule(architecture.embedding)}
    parts |= {f"block.{i}": block for i, block in enumerate(model.get_submodule(architecture.blocks))}
    if architecture.norm:
        parts["norm"] = model.get_submodule(architecture.norm)

    def keep(site: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: seen.update({site: front(output)})

    handles = [part.register_forward_hook(keep(site)) for site, part in parts.items()]
    seen["logits"] = model(use_cache=False, **inputs).logits
    for handle in handles:
        handle.remove()
    return seen


def assert_bits(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")


@every_architecture
def test_anatomy_is_what_the_class_calls_its_parts(architecture: Architecture) -> None:
    model = model_of(architecture)
    anatomy = probekit.Subject(model).anatomy
    known = list(model.get_submodule(architecture.blocks))
    assert len(anatomy.blocks) == len(known)
    assert all(found is block for found, block in zip(anatomy.blocks, known, strict=True))
    assert anatomy.embedding is model.get_submodule(architecture.embedding)
    assert anatomy.norm is (model.get_submodule(architecture.norm) if architecture.norm else None)
    assert anatomy.unembedding is model.get_submodule(architecture.unembedding)
    assert (anatomy.blocks_path, anatomy.embedding_path) == (architecture.blocks, architecture.embedding)
    assert (anatomy.norm_path, anatomy.unembedding_path) == (architecture.norm, architecture.unembedding)


def forwards_that_are_right(architecture: Architecture, model: nn.Module, padding: str) -> dict[str, torch.Tensor]:
    """What a plain forward returns in which a padded prompt has the logits that it has alone."""
    mask = MASKS[padding]
    if mask is None:
        return plain_forward(architecture, model, input_ids=IDS)
    row = int(mask.sum(1).argmin())
    alone = plain_forward(architecture, model, input_ids=IDS[row : row + 1, mask[row].bool()])["logits"][0]
    for more in ({}, {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}):
        with contextlib.suppress(TypeError):
            found = plain_forward(architecture, model, input_ids=IDS, attention_mask=mask, **more)
            if torch.allclose(found["logits"][row, mask[row].bool()], alone, rtol=1e-4, atol=1e-5):
                return found
    return {}


@every_architecture
@pytest.mark.parametrize("padding", MASKS)
def test_capture_and_layer_map_equal_a_plain_forward_bit_for_bit(architecture: Architecture, padding: str) -> None:
    mask = MASKS[padding]
    model = model_of(architecture)
    with torch.no_grad():
        expected = forwards_that_are_right(architecture, copy.deepcopy(model), padding)
    subject = probekit.Subject(model)
    if not expected:
        assert padding == "padded on the left"
        with pytest.raises(UsageError, match=r"With padding on the left, .* does not give a prompt the activation"):
            subject.capture(IDS, ["logits"], attention_mask=mask)
        return
    assert sorted(subject.sites()) == sorted(expected)
    captured = subject.capture(IDS, subject.sites(), attention_mask=mask)
    embeddings = subject.embed(IDS)
    for site in subject.sites():
        assert_bits(captured[site], expected[site], f"capture of {site}")
        assert not captured[site].requires_grad
        with torch.no_grad():
            assert_bits(
                subject.layer_map(site, attention_mask=mask)(embeddings), expected[site], f"layer map of {site}"
            )


@every_architecture
@pytest.mark.parametrize("padding", MASKS)
def test_a_layer_map_stays_the_same_function_over_the_steps_of_a_descent(
    architecture: Architecture, padding: str
) -> None:
    mask = MASKS[padding]
    if (architecture.name, padding) == ("Bart", "padded on the left"):
        pytest.skip("Bart does not take positions, and counts them from the padding's beginning: it is refused.")
    subject = probekit.Subject(model_of(architecture))
    layer_map = subject.layer_map("block.-1", attention_mask=mask)
    for step in range(5):  # a layer map may compute its later calls in another way than its first
        ids = (IDS + step) % 80
        embeddings = subject.embed(ids).requires_grad_()
        expected = subject.capture(ids, ["block.-1"], attention_mask=mask)["block.-1"]
        activation = layer_map(embeddings)
        assert_bits(activation.detach(), expected, f"step {step}")
        gradient = torch.autograd.grad(activation.square().sum(), embeddings)[0]
        fresh = subject.layer_map("block.-1", attention_mask=mask)(embeddings)
        assert_bits(gradient, torch.autograd.grad(fresh.square().sum(), embeddings)[0], f"gradient at step {step}")


@every_architecture
def test_capture_equals_the_hidden_states_of_transformers(architecture: Architecture) -> None:
    model = model_of(architecture)
    reference = copy.deepcopy(model)  # asking for hidden states leaves hooks behind
    with torch.no_grad():
        output = reference(input_ids=IDS, output_hidden_states=True, use_cache=False)
    subject = probekit.Subject(model)
    count = len(subject.anatomy.blocks)
    captured = subject.capture(IDS, [f"block.{i}" for i in range(count)])
    for index in range(count - 1):  # the last one is after the final norm there
        assert_bits(
            captured[f"block.{index}"], output.hidden_states[index + architecture.first_hidden_state], f"block {index}"
        )


@every_architecture
def test_products_with_the_jacobian_are_each_others_transpose(architecture: Architecture) -> None:
    """`u·Jv = Jᵀu·v`: the second backward pass, which finds Jv, against the first, which is the gradient's own."""
    subject = probekit.Subject(model_of(architecture))
    generator = torch.Generator().manual_seed(3)
    embeddings = subject.embed(IDS)
    jacobian = Jacobian(subject.layer_map("block.1"), embeddings, torch.ones(*embeddings.shape[:2], 1))
    v = torch.randn(embeddings.shape, generator=generator)
    pushed = jacobian.times(v)
    u = torch.randn(pushed.shape, generator=generator)
    pulled = jacobian.transposed_times(u)
    assert pushed.norm() > 0
    assert abs(float((u * pushed).sum() - (pulled * v).sum())) <= 1e-5 * float(u.norm() * pushed.norm())


@every_architecture
def test_gradient_equals_autograd_through_the_plain_model(architecture: Architecture) -> None:
    model = model_of(architecture)
    if "inputs_embeds" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this class takes no inputs_embeds")
    reference = copy.deepcopy(model)
    subject = probekit.Subject(model)
    embeddings = subject.embed(IDS) + 0.1 * torch.randn(
        subject.embed(IDS).shape, generator=torch.Generator().manual_seed(1)
    )
    for site in ("block.0", "block.1", "logits"):
        ours = embeddings.clone().requires_grad_()
        activation = subject.layer_map(site)(ours)
        direction = torch.randn(activation.shape, generator=torch.Generator().manual_seed(2))
        (activation * direction).sum().backward()
        theirs = embeddings.clone().requires_grad_()
        expected = plain_forward(architecture, reference, inputs_embeds=theirs)[site]
        (expected * direction).sum().backward()
        assert_bits(activation.detach(), expected.detach(), f"activation at {site}")
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.abs().max() > 0
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def wholly_double(model: nn.Module) -> nn.Module:
    """The model in float64, with the norms too that transformers computes in float32 whatever the model's precision."""

    def in_double(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda states: (
            norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        )

    model = model.double()
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = in_double(module)
    return model


@pytest.mark.parametrize("name", ["GPT2", "Llama", "OPT-projected"])
@pytest.mark.parametrize("site", ["block.0", "block.-1", "logits"])
def test_gradient_equals_finite_differences_in_float64(name: str, site: str) -> None:
    architecture = next(candidate for candidate in ARCHITECTURES if candidate.name == name)
    subject = probekit.Subject(wholly_double(model_of(architecture)))
    generator = torch.Generator().manual_seed(3)
    embeddings = subject.embed(IDS[:1, :4])
    layer_map = subject.layer_map(site)
    direction = torch.randn(layer_map(embeddings).shape, generator=generator, dtype=torch.float64)
    at = embeddings.clone().requires_grad_()
    (layer_map(at) * direction).sum().backward()
    assert at.grad is not None
    step = 1e-6
    for _ in range(4):
        towards = torch.randn(embeddings.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            rise = (layer_map(embeddings + step * towards) - layer_map(embeddings - step * towards)) * direction
        torch.testing.assert_close((at.grad * towards).sum(), rise.sum() / (2 * step), rtol=1e-6, atol=1e-7)


def count_block_calls(model: nn.Module, architecture: Architecture) -> list[int]:
    """How often each block's forward has run, from now on."""
    calls: list[int] = []

    def counted(index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[index] += 1
            return original(*args, **kwargs)

        return forward

    for index, block in enumerate(model.get_submodule(architecture.blocks)):
        calls.append(0)
        block.forward = counted(index, block.forward)
    return calls


@every_architecture
@pytest.mark.parametrize(
    ("sites", "deepest"),
    [
        (["block.0"], 0),
        (["block.1", "embedding", "block.0"], 1),
        (["embedding", "block.0", "block.1"], 1),
        (["embedding"], -1),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_nothing_past_the_deepest_site_runs(architecture: Architecture, sites: list[str], deepest: int) -> None:
    subject = probekit.Subject(model_of(architecture))
    calls = count_block_calls(subject.model, architecture)
    captured = subject.capture(IDS, sites)
    assert list(captured) == sites
    expected = [int(index <= deepest) for index in range(len(calls))]
    assert calls == expected
    layer_map = subject.layer_map(f"block.{deepest}" if deepest >= 0 else "embedding")
    calls[:] = [0] * len(calls)
    layer_map(subject.embed(IDS))
    assert calls == expected


@every_architecture
def test_model_is_untouched_by_early_stops_layer_maps_and_edits(
    architecture: Architecture, assert_untouched: Callable[[nn.Module], Any]
) -> None:
    model = model_of(architecture)
    with assert_untouched(model):
        subject = probekit.Subject(model)
        subject.capture(IDS, ["block.0"])
        embeddings = subject.embed(IDS).requires_grad_()
        subject.layer_map("block.1")(embeddings).sum().backward()
        with subject.edit("block.0", lambda activation: activation * 2):
            subject.capture(IDS, ["logits"])


@every_architecture
def test_an_edit_reaches_the_logits_and_is_gone_afterwards(architecture: Architecture) -> None:
    model = model_of(architecture)
    subject = probekit.Subject(model)
    with torch.no_grad():
        before = model(input_ids=IDS, use_cache=False).logits
        captured = subject.capture(IDS, ["block.0", "block.1"])
        for site in ("embedding", "block.0", "block.1", "logits"):
            with subject.edit(site, lambda activation: activation.mul_(-1.5).add_(0.25)):
                during = model(input_ids=IDS, use_cache=False).logits
                assert_bits(subject.capture(IDS, ["logits"])["logits"], during, "capture during an edit")
            assert not torch.equal(during, before), f"an edit of {site} did not reach the logits"
            assert_bits(model(input_ids=IDS, use_cache=False).logits, before, f"logits after an edit of {site}")
        # Replacing a block's output by another prompt's is the same as having run that prompt so far.
        other = subject.capture(IDS.flip(0), ["block.1", "logits"])
        with subject.edit("block.1", lambda activation: other["block.1"]):
            assert_bits(subject.capture(IDS, ["logits"])["logits"], other["logits"], "patched logits")
        with subject.edit("block.0", lambda activation: activation + 0):
            assert_bits(subject.capture(IDS, ["block.1"])["block.1"], captured["block.1"], "an edit that changes none")


def test_an_edit_that_returns_another_shape_is_a_sentence_and_leaves_the_model_usable() -> None:
    model = model_of(ARCHITECTURES[0])
    subject = probekit.Subject(model)
    before = subject.capture(IDS, ["logits"])["logits"]
    with (
        pytest.raises(UsageError, match=r"An edit of 'block\.0' returned \(2, 6\); expected a tensor of \(2, 6, 32\)"),
        subject.edit("block.0", lambda activation: activation[..., 0]),
    ):
        subject.capture(IDS, ["logits"])
    assert_bits(subject.capture(IDS, ["logits"])["logits"], before, "logits after a failed edit")


def test_sites_may_be_named_twice_negatively_and_by_path() -> None:
    subject = probekit.Subject(model_of(ARCHITECTURES[0]))
    captured = subject.capture(IDS, ["block.-1", "transformer.h.2", "block.2", "transformer.h.0.mlp"])
    assert list(captured) == ["block.-1", "transformer.h.2", "block.2", "transformer.h.0.mlp"]
    assert_bits(captured["block.-1"], captured["block.2"], "block.-1")
    assert_bits(captured["transformer.h.2"], captured["block.2"], "transformer.h.2")


def test_a_path_to_a_submodel_reads_its_first_output() -> None:
    model = model_of(ARCHITECTURES[0])
    subject = probekit.Subject(model)
    captured = subject.capture(IDS, ["transformer", "norm"])
    assert_bits(captured["transformer"], captured["norm"], "the output of the model without its head")
    with subject.edit("transformer", lambda activation: activation * 0):
        assert not subject.capture(IDS, ["logits"])["logits"].any()


@pytest.mark.parametrize("name", ["GPT2", "OPT", "Bloom", "Falcon", "Phi3"])
def test_a_model_in_training_computes_in_eval_mode_and_gets_its_flags_back(name: str) -> None:
    architecture = next(candidate for candidate in ARCHITECTURES if candidate.name == name)
    model = model_of(architecture)
    with torch.no_grad():
        expected = plain_forward(architecture, copy.deepcopy(model), input_ids=IDS)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    blocks = model.get_submodule(architecture.blocks)
    model.train().requires_grad_(True)
    blocks[1].eval()  # a mixture: one block at rest, one frozen
    for parameter in blocks[0].parameters():
        parameter.requires_grad_(False)
    modes = {path: module.training for path, module in model.named_modules()}
    flags = {path: parameter.requires_grad for path, parameter in model.named_parameters()}
    assert len(set(modes.values())) == len(set(flags.values())) == 2

    def assert_given_back() -> None:
        assert {path: module.training for path, module in model.named_modules()} == modes
        assert {path: parameter.requires_grad for path, parameter in model.named_parameters()} == flags

    subject = probekit.Subject(model)
    assert_given_back()
    captured = subject.capture(IDS, subject.sites())
    assert_given_back()
    for site, activation in captured.items():
        assert_bits(activation, expected[site], site)
    embeddings = subject.embed(IDS).requires_grad_()
    activation = subject.layer_map("block.1")(embeddings)
    assert_given_back()
    assert_bits(activation.detach(), expected["block.1"], "layer map in training mode")
    activation.sum().backward()
    assert embeddings.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(UsageError):
        subject.layer_map("block.1")(embeddings[..., :-1])
    assert_given_back()


def test_what_torch_compile_wraps_is_unwrapped() -> None:
    model = model_of(ARCHITECTURES[0])
    subject = probekit.Subject(torch.compile(model, backend="eager"))
    assert subject.model is model
    assert subject.anatomy.blocks_path == "transformer.h"


def test_a_layer_map_refuses_embeddings_of_another_shape() -> None:
    subject = probekit.Subject(model_of(ARCHITECTURES[0]))
    layer_map = subject.layer_map("block.0")
    with pytest.raises(UsageError, match=r"\(2, 6, 31\); the model's own have \(2, 6, 32\)"):
        layer_map(torch.zeros(2, 6, 31))
    with pytest.raises(UsageError, match=r"expected \[batch, sequence, width\]"):
        layer_map(torch.zeros(6, 32))


def test_a_layer_map_does_not_see_the_token_ids() -> None:
    subject = probekit.Subject(model_of(ARCHITECTURES[0]))
    embeddings = subject.embed(IDS)
    assert_bits(
        subject.layer_map("logits", input_ids=IDS.flip(1))(embeddings),
        subject.layer_map("logits")(embeddings),
        "layer map with other ids",
    )


def test_one_prompts_mask_serves_a_whole_batch_of_restarts() -> None:
    subject = probekit.Subject(model_of(ARCHITECTURES[0]))
    mask = MASKS["padded on the left"]
    assert mask is not None
    layer_map = subject.layer_map("block.1", attention_mask=mask[:1])
    embeddings = subject.embed(IDS[:1])
    alone, batched = layer_map(embeddings), layer_map(embeddings.expand(3, -1, -1))
    for row in batched:
        torch.testing.assert_close(row, alone[0])
