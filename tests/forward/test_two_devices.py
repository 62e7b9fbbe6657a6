"""Models spread over devices: the same values as on the CPU alone, of a subject and of every bundled analysis.

The device is a pretend one, `tests/second_device.py`, which computes with the CPU's kernels and refuses tensors of two
devices, so that what differs, or is refused, is probekit's own. It stays in a process for good: all that uses it runs
in one of its own, and an assertion that fails there fails the test here.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import probekit
from tests import second_device
from tests.analyses.recovering import few_samples
from tests.forward.tiny import named

IDS = torch.tensor([[25, 37, 23, 64, 29], [70, 28, 28, 41, 22]])
PROMPTS = [[25, 37, 23, 64, 29], [70, 28, 41]]
MODELS = ("gpt2", "llama")
PLACEMENTS = (
    "two devices",
    "a device, then the CPU",
    "the CPU, then a device",
    "a device, the rest offloaded",
    "all offloaded",
)

IDS_OF_CODES = Path(__file__).resolve().parents[1] / "control_codes" / "ids.toml"

OPTIONS: dict[str, dict[str, Any]] = {
    "activation-statistics": {"sites": "embedding,blocks,logits"},
    "autoencoder": {"sites": "block.1", "widths": [3], "steps": 2, "seeds": 1, "pieces": 10, "length": 8, "invert": 1},
    "clamped-walk": {"steps": 2, "walkers": 1, "noise_draws": 1, "inner": 1, "sites": "block.1"},
    "control-codes": {"codes": str(IDS_OF_CODES), "new_tokens": 3},
    "exact-inverter": {"sites": "block.1", "proposals": 1, "rounding": "int8"},
    "frozen-head": {"steps": 2, "batch": 2, "length": 8, "initialisations": 1, "pieces": 10},
    "gradient-inverter": {
        "steps": 2,
        "restarts": 2,
        "sites": "block.1",
        "record_every": 1,
        "optimizer": "lbfgs",
        "nearest_pull": 0.1,
    },
    "jacobian-spectrum": {"sites": "block.1", "method": "matrix-free", "iterations": 3, "probes": 2},
    "layer-similarity": {"sites": "embedding,blocks,logits", "minibatch": 8},
    "leakage-audit": {"sites": "block.1", "precisions": ["none"], "noise": [0.0, 0.5]},
    "null-space-walk": {
        "steps": 1,
        "walkers": 1,
        "noise_draws": 1,
        "iterations": 3,
        "correction_iterations": 2,
        "sites": "block.1",
    },
    "one-word-autoencoder": {"texts": "random", "length": 4, "pieces": 20, "steps": 2, "batch": 4, "seeds": 1},
    "orthogonal-walk": {"steps": 1, "walkers": 1, "noise_draws": 1, "sites": "block.1", "gradient_check": True},
    "pseudo-inverse": {"sites": "embedding,blocks,norm,logits"},
    "repetition": {
        "strategies": ["temperature", "contrastive"],
        "new_tokens": 2,
        "samples": 2,
        "text_length": 4,
        "random_draws": 2,
    },
    "text-vae": {
        "texts": "random",
        "length": 4,
        "pieces": 20,
        "steps": 4,
        "batch": 4,
        "latent": 3,
        "importance_samples": 1,
    },
}
# These train a copy of the model, which is refused where it is spread.
TRAINING_A_COPY = ("one-word-autoencoder", "text-vae")
# Other ways through the same analyses.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient-inverter over tokens, through the head": (
        "gradient-inverter",
        {
            "steps": 2,
            "restarts": 1,
            "sites": "block.1",
            "head": "model",
            "input_space": "vocabulary-softmax",
            "vocabulary": "prompts",
        },
    ),
    "jacobian-spectrum, dense": ("jacobian-spectrum", {"sites": "block.-1", "method": "dense"}),
    **{name: (name, options) for name, options in OPTIONS.items() if name not in TRAINING_A_COPY},
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., None]]:
    """`elsewhere(check, …)`: the check, in the process that has the pretend device."""
    if not second_device.is_possible():
        pytest.skip(f"torch {torch.__version__} has no devices that are made in Python")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, second_device.register) as process:
        yield lambda check, *arguments: process.submit(check, *arguments).result()


# --- in the other process --------------------------------------------------------------------------------------------


@cache
def on_cpu(name: str) -> probekit.Subject:
    return probekit.Subject(named(name))


@cache
def placed(name: str, placement: str) -> probekit.Subject:
    """The same model, spread by accelerate, with its embedding and its head on the first device."""
    model = named(name)
    first, second = torch.device("twin:0"), torch.device("twin:1")
    if placement == "all offloaded":
        return probekit.Subject(accelerate.cpu_offload(model, execution_device=first))
    places: dict[str, tuple[Any, Any]] = {
        "two devices": (first, second),
        "a device, then the CPU": (first, torch.device("cpu")),
        "the CPU, then a device": ("cpu", first),
        "a device, the rest offloaded": (first, "cpu"),
    }
    begin, end = places[placement]
    anatomy = on_cpu(name).anatomy
    begins = [anatomy.embedding_path, anatomy.block_paths[0], "lm_head"]
    inside = tuple(f"{path}." for path in anatomy.block_paths)
    device_map = {
        path: begin if path in begins or "wpe" in path else end
        for path, part in model.named_modules()
        if path in anatomy.block_paths or not (any(part.children()) or path.startswith(inside))
    }
    return probekit.Subject(accelerate.dispatch_model(model, device_map, main_device=begin))


def assert_same(expected: torch.Tensor, found: torch.Tensor, what: str) -> None:
    assert torch.equal(expected, found.cpu()), f"{what} differs: {expected} on the CPU, {found} spread"


def devices(subject: probekit.Subject) -> dict[str, torch.device]:
    return {name: weight.device for name, weight in subject.model.state_dict().items()}


def run(subject: probekit.Subject, name: str, options: dict[str, Any]) -> probekit.Result:
    kind = probekit.Plugins().analysis(name)
    ids = [subject.check_ids(prompt) for prompt in PROMPTS]
    prompts = [probekit.Prompt("", each, subject.tokens(each)) for each in ids]
    with pytest.MonkeyPatch.context() as patch:
        few_samples(patch)
        result: probekit.Result = kind(kind.options_model(**options)).run(subject, prompts)
    result.encode()
    result.seconds.clear()  # no two runs take as long
    return result


def differences(expected: Any, found: Any, where: str) -> Iterator[str]:
    """What differs by more than the rounding of float64: torch decomposes the matrices of other devices otherwise."""
    if is_dataclass(expected):
        for part in fields(expected):
            yield from differences(getattr(expected, part.name), getattr(found, part.name), f"{where}.{part.name}")
    elif isinstance(expected, dict):
        if expected.keys() != found.keys():
            yield f"{where} has {sorted(found)}, not {sorted(expected)}"
        for key in expected.keys() & found.keys():
            yield from differences(expected[key], found[key], f"{where}/{key}")
    elif isinstance(expected, list):
        if len(expected) != len(found):
            yield f"{where} has {len(found)} parts, not {len(expected)}"
        for index, parts in enumerate(zip(expected, found, strict=False)):
            yield from differences(*parts, f"{where}/{index}")
    elif isinstance(expected, torch.Tensor):
        one, other = expected.double(), found.cpu().double()
        if one.shape != other.shape or expected.dtype != found.dtype:
            yield f"{where} is {found.dtype} {tuple(found.shape)}, not {expected.dtype} {tuple(expected.shape)}"
        elif not torch.allclose(one, other, 0, 1e-12 * float(one.abs().nan_to_num().max()), equal_nan=True):
            yield f"{where} is {found}, not {expected}"
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(expected, found, rel_tol=1e-12):
            yield f"{where} is {found!r}, not {expected!r}"
    elif expected != found:
        yield f"{where} is {found!r}, not {expected!r}"


def the_pretend_device_checks_devices() -> None:
    there, other, here = torch.ones(2, 2, device="twin:0"), torch.ones(2, 2, device="twin:1"), torch.ones(2, 2)
    mixtures: list[Callable[[], Any]] = [
        lambda: there + other,
        lambda: there @ here,
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there[0, 0], here[0, 0]]),
        lambda: torch.where(here > 0, there, there),
        lambda: torch.equal(there, other),
        lambda: nn.functional.embedding(torch.tensor([0]), there),
        lambda: here[torch.tensor([0], device="twin:0")],
        lambda: torch.add(here, here, out=there),
        lambda: torch.randn(2, device="twin:0", generator=torch.Generator()),
    ]
    for mixture in mixtures:
        with pytest.raises(RuntimeError, match="Expected"):
            mixture()
    assert (there + torch.tensor(2.0)).device == there[torch.tensor([1])].device == torch.device("twin:0")
    assert (other.to("twin:0") + there).tolist() == [[2, 2], [2, 2]]


def the_pretend_device_computes_what_the_cpu_does() -> None:
    def values(device: str) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 5, 32, generator=generator).to(device).requires_grad_()
        layer = copy.deepcopy(named("llama").model.layers[0].mlp).to(device)  # type: ignore[union-attr, index]
        heads = layer(x.sin()).view(2, 5, 4, 8).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads.tanh(), heads.exp(), is_causal=True)
        table = torch.zeros(7, 8, device=device)
        table[torch.arange(5, device=device)] = mixed.detach()[0, 0]
        (gradient,) = torch.autograd.grad(mixed.softmax(-1)[..., 0].sum(), x)
        assert gradient.device == torch.device(device)
        return [mixed.detach().cpu(), table.cpu(), gradient.cpu()]

    for expected, found in zip(values("cpu"), values("twin:1"), strict=True):
        assert_same(expected, found, "a value")


def captures_are_the_same(name: str, placement: str) -> None:
    cpu, spread = on_cpu(name), placed(name, placement)
    sites = [*cpu.sites(), f"{cpu.anatomy.block_paths[1]}.mlp"]
    padded, mask = cpu.batch(PROMPTS)
    for ids, shown in [(IDS, None), (padded, mask)]:
        expected, found = (subject.capture(ids, sites, shown) for subject in (cpu, spread))
        for site in sites:
            assert_same(expected[site], found[site], site)
    assert spread.device == torch.device("cpu" if placement.startswith("the CPU") else "twin:0")


def layer_maps_are_the_same(name: str, placement: str) -> None:
    """Called often enough for the blocks to be replayed without the rest of the model."""
    cpu, spread = on_cpu(name), placed(name, placement)

    def called(subject: probekit.Subject, site: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        layer_map = subject.layer_map(site)
        for call in range(4):
            embeddings = (subject.embed(IDS) * (1 + call)).requires_grad_()
            activation = layer_map(embeddings)
            (gradient,) = torch.autograd.grad(activation.square().sum(), embeddings)
            assert gradient.device == embeddings.device
            yield activation.detach(), gradient.cpu()

    for site in ("block.0", "block.-1", "logits"):
        for expected, found in zip(called(cpu, site), called(spread, site), strict=True):
            assert_same(expected[0], found[0], f"the activation at {site}")
            assert_same(expected[1], found[1], f"the gradient from {site}")


def edits_are_the_same(name: str, placement: str) -> None:
    cpu, spread = on_cpu(name), placed(name, placement)
    noise = torch.randn(*IDS.shape, cpu.width, generator=torch.Generator().manual_seed(0))
    edits: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda activation: activation * 0.5, lambda _: noise]
    for edit in edits:
        for site in ("embedding", "block.-1", "norm"):
            with cpu.edit(site, edit), spread.edit(site, edit):
                expected, found = (subject.capture(IDS, ["logits"])["logits"] for subject in (cpu, spread))
            assert_same(expected, found, f"what an edit of {site} makes of the logits")


def decoding_is_the_same(name: str, placement: str) -> None:
    cpu, spread = on_cpu(name), placed(name, placement)
    assert_same(cpu.embedding_matrix, spread.embedding_matrix, "the embedding matrix")
    activations = [subject.capture(IDS, ["block.-1"])["block.-1"] for subject in (cpu, spread)]
    assert_same(cpu.unembed(activations[0]), spread.unembed(activations[1]), "the unembedding")
    for decoder in ("pseudo-inverse", "nearest", "cosine", "unembedding"):
        decoded = [s.decode(a, decoder=decoder) for s, a in zip((cpu, spread), activations, strict=True)]
        assert_same(decoded[0], decoded[1], f"what {decoder} decodes")
        for expected, found in zip(cpu.margins(decoder), spread.margins(decoder), strict=True):
            assert_same(expected, found, f"a margin of {decoder}")
    for settings in ({"do_sample": False}, {"do_sample": True, "num_return_sequences": 2}):
        written = [subject.generate(IDS, max_new_tokens=3, **settings) for subject in (cpu, spread)]
        assert_same(written[0], written[1], f"what is generated with {settings}")


def an_analysis_is_the_same(variant: str, name: str, placement: str) -> None:
    spread = placed(name, placement)
    before = devices(spread)
    analysis, options = VARIANTS[variant]
    expected = on_cpu_alone(variant, name)
    found = run(spread, analysis, options)
    apart = list(differences(expected, found, analysis))
    assert not apart, "\n".join(apart[:5])
    assert devices(spread) == before, "weights were left elsewhere"


@cache
def on_cpu_alone(variant: str, name: str) -> probekit.Result:
    return run(on_cpu(name), *VARIANTS[variant])


def the_weights_stay_where_they_are(name: str, placement: str) -> None:
    spread = placed(name, placement)
    before, logits = devices(spread), spread.model(input_ids=IDS.to(spread.device)).logits
    spread.capture(IDS, ["block.1"])
    layer_map = spread.layer_map("block.1")
    for _ in range(4):
        embeddings = spread.embed(IDS).requires_grad_()
        layer_map(embeddings).sum().backward()
    assert devices(spread) == before
    assert_same(logits.cpu(), spread.model(input_ids=IDS.to(spread.device)).logits, "the model")


def unlikelihood_is_refused(name: str, placement: str) -> None:
    options = {**OPTIONS["repetition"], "unlikelihood_steps": 1}
    with pytest.raises(probekit.UsageError, match="needs the whole model on one device"):
        run(placed(name, placement), "repetition", options)


def training_a_copy_is_refused(analysis: str, placement: str) -> None:
    with pytest.raises(probekit.UsageError, match="needs the whole model on one device"):
        run(placed("gpt2", placement), analysis, OPTIONS[analysis])


# --- the tests -------------------------------------------------------------------------------------------------------

everywhere = pytest.mark.parametrize("placement", PLACEMENTS)
every_model = pytest.mark.parametrize("name", MODELS)


def test_the_pretend_device_refuses_tensors_of_two_devices(elsewhere: Callable[..., None]) -> None:
    elsewhere(the_pretend_device_checks_devices)


def test_the_pretend_device_computes_the_bits_of_the_cpu(elsewhere: Callable[..., None]) -> None:
    elsewhere(the_pretend_device_computes_what_the_cpu_does)


@everywhere
@every_model
def test_activations_are_those_of_the_cpu_bit_for_bit(
    name: str, placement: str, elsewhere: Callable[..., None]
) -> None:
    elsewhere(captures_are_the_same, name, placement)


@everywhere
@every_model
def test_layer_maps_and_their_gradients_are_those_of_the_cpu_bit_for_bit(
    name: str, placement: str, elsewhere: Callable[..., None]
) -> None:
    elsewhere(layer_maps_are_the_same, name, placement)


@everywhere
@every_model
def test_an_edit_acts_as_on_the_cpu(name: str, placement: str, elsewhere: Callable[..., None]) -> None:
    elsewhere(edits_are_the_same, name, placement)


@everywhere
@every_model
def test_decoding_and_generating_are_those_of_the_cpu(
    name: str, placement: str, elsewhere: Callable[..., None]
) -> None:
    elsewhere(decoding_is_the_same, name, placement)


@everywhere
@every_model
def test_weights_stay_on_their_devices(name: str, placement: str, elsewhere: Callable[..., None]) -> None:
    elsewhere(the_weights_stay_where_they_are, name, placement)


@pytest.mark.parametrize("placement", ["two devices", "all offloaded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_analysis_finds_what_it_finds_on_the_cpu(
    variant: str, placement: str, elsewhere: Callable[..., None]
) -> None:
    elsewhere(an_analysis_is_the_same, variant, "gpt2", placement)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_analysis_finds_the_same_where_only_the_last_blocks_are_on_a_device(
    variant: str, elsewhere: Callable[..., None]
) -> None:
    elsewhere(an_analysis_is_the_same, variant, "llama", "the CPU, then a device")


def test_fine_tuning_a_model_on_two_devices_is_refused(elsewhere: Callable[..., None]) -> None:
    elsewhere(unlikelihood_is_refused, "gpt2", "two devices")


@pytest.mark.parametrize("placement", ["two devices", "all offloaded"])
@pytest.mark.parametrize("analysis", TRAINING_A_COPY)
def test_training_a_copy_of_a_model_that_is_spread_is_refused(
    analysis: str, placement: str, elsewhere: Callable[..., None]
) -> None:
    elsewhere(training_a_copy_is_refused, analysis, placement)


def test_every_bundled_analysis_is_here() -> None:
    bundled = {
        analysis.name
        for record in probekit.Plugins().records
        if record.distribution == "probekit"
        for analysis in record.analyses
    }
    assert bundled == set(OPTIONS)


def test_this_process_has_no_pretend_device(elsewhere: Callable[..., None]) -> None:
    elsewhere(the_pretend_device_checks_devices)
    with pytest.raises(RuntimeError):
        torch.device(second_device.NAME)
