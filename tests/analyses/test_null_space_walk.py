"""The null-space walk against dense Jacobians: its directions, its corrections, and how little the activation moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit
from probekit_plugins.jacobian import Jacobian, bidiagonalise
from probekit_plugins.null_space_walk import NullSpaceWalk, NullSpaceWalkOptions
from probekit_plugins.null_space_walk.strides import damped_least_squares

IDS = [5, 17, 2]
WIDTH = 12
ENTRIES = len(IDS) * WIDTH
ALL: dict[str, Any] = {"iterations": ENTRIES, "correction_iterations": ENTRIES}


def gpt2(dtype: torch.dtype = torch.float64, *, width: int = WIDTH, seed: int = 0, **settings: Any) -> probekit.Subject:
    torch.manual_seed(seed)
    config = GPT2Config(
        **{"vocab_size": 60, "n_positions": 16, "n_embd": width, "n_layer": 2, "n_head": 2, **settings},
        bos_token_id=0,
        eos_token_id=0,
    )
    return probekit.Subject(GPT2LMHeadModel(config).to(dtype).eval())


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    """Weights ten times as large as GPT-2's initial ones: else a block hardly differs from the identity."""
    return gpt2(initializer_range=0.2)


def walked(subject: probekit.Subject, *prompts: list[int], seed: int = 0, **options: Any) -> probekit.Result:
    analysis = NullSpaceWalk(NullSpaceWalkOptions(**options), probekit.Context(seed))
    ids = [subject.check_ids(given) for given in prompts or (IDS,)]
    return analysis.run(subject, [probekit.Prompt("", each, subject.tokens(each)) for each in ids])


def moved(subject: probekit.Subject, result: probekit.Result, track: str = "null space") -> torch.Tensor:
    """`e_N − e*` of the walkers of the first prompt at the last block, `[K, T d]`."""
    site = subject.expand_sites("block.-1")[0]
    found: torch.Tensor = result.tensors[f"0/{site}/{track}/embeddings"] - subject.embed(torch.tensor([IDS]))
    return found.flatten(1)


def activation(subject: probekit.Subject, embeddings: torch.Tensor) -> torch.Tensor:
    """The last block's, `[T d]` → `[T d]`: GPT-2's own modules one after another, without hooks."""
    transformer: Any = subject.model.transformer
    hidden = embeddings.view(1, -1, subject.width)
    hidden = hidden + transformer.wpe(torch.arange(hidden.shape[1]))
    for block in transformer.h:
        found = block(hidden, use_cache=False)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden.flatten()


def dense(subject: probekit.Subject, embeddings: torch.Tensor) -> torch.Tensor:
    """`J`, `[T d, T d]`."""
    return torch.autograd.functional.jacobian(lambda e: activation(subject, e), embeddings)


def start_of(subject: probekit.Subject) -> torch.Tensor:
    return subject.embed(torch.tensor([IDS])).flatten()


# --- directions ------------------------------------------------------------------------------------------------------


def test_the_first_direction_is_the_smallest_right_singular_vector(subject: probekit.Subject) -> None:
    """And a tiny step along it moves the activation σ_min times as far as the input."""
    result = walked(subject, steps=1, walkers=2, corrections=0, step_size=1e-6, **ALL)
    _, values, rows = torch.linalg.svd(dense(subject, start_of(subject)))
    assert float(values[-1]) < 0.8 * float(values[-2]), "a direction that stands out"
    for walker, found in enumerate(moved(subject, result)):
        assert float(found.norm()) == pytest.approx(1e-6 * len(IDS) ** 0.5, rel=1e-9), "η for each position, all in all"
        direction = found / found.norm() * torch.sign(found @ rows[-1])
        torch.testing.assert_close(direction, rows[-1], rtol=0, atol=1e-8)
        row = result.tables["walkers"][walker]
        assert float(row["output_l2"] or 0) / float(row["input_l2"] or 0) == pytest.approx(float(values[-1]), rel=1e-4)


@pytest.mark.parametrize("directions", [3, 7])
def test_walkers_start_in_the_span_of_the_smallest_each_its_own_way(subject: probekit.Subject, directions: int) -> None:
    """`Σ c_i v_i / σ_i`, up to the signs of singular vectors, with c of the walker's own."""
    result = walked(subject, steps=1, walkers=3, directions=directions, corrections=0, **ALL)
    _, values, rows = torch.linalg.svd(dense(subject, start_of(subject)))
    for walker, found in enumerate(moved(subject, result)):
        shares = rows @ found
        assert float(shares[:-directions].norm() / shares.norm()) < 1e-7
        generator = probekit.Context(0).generator(f"block.1/0/{walker}/heading")
        expected = torch.randn(directions, generator=generator).double() / values[-directions:]
        torch.testing.assert_close(
            (shares[-directions:] / shares.norm()).abs(), (expected / expected.norm()).abs(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize(("directions", "relinearise"), [(1, 1), (4, 1), (4, 2), (4, 3)])
def test_the_walk_goes_on_the_way_it_went(subject: probekit.Subject, directions: int, relinearise: int) -> None:
    """Each step is the last one's direction projected onto the span, found anew at every so many steps."""
    options = {"directions": directions, "relinearise": relinearise, "corrections": 0, "step_size": 0.01, **ALL}
    first = moved(subject, walked(subject, steps=1, walkers=2, **options))
    result = moved(subject, walked(subject, steps=5, walkers=2, **options))
    length = 0.01 * len(IDS) ** 0.5
    for walker, found in enumerate(result):
        heading = first[walker] / first[walker].norm()
        embeddings, span = start_of(subject), torch.empty(0)
        for step in range(5):
            if step % relinearise == 0:
                span = torch.linalg.svd(dense(subject, embeddings)).Vh[-directions:]
            heading = span.T @ (span @ heading)
            heading = heading / heading.norm()
            embeddings = embeddings + length * heading
        expected = embeddings - start_of(subject)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.norm()))
        assert float(expected.norm()) > 0.8 * 5 * length, "it has not turned back"


def test_the_control_is_one_random_direction_of_the_same_length(subject: probekit.Subject) -> None:
    result = walked(subject, steps=4, walkers=2, iterations=3, correction_iterations=3)
    for walker, found in enumerate(moved(subject, result, "random")):
        generator = probekit.Context(0).generator(f"block.1/0/{walker}/direction")
        z = torch.randn(len(IDS), WIDTH, generator=generator, dtype=torch.float64).flatten()
        torch.testing.assert_close(found, 4 * 0.01 * len(IDS) ** 0.5 * z / z.norm(), rtol=1e-9, atol=1e-12)


def test_more_iterations_find_directions_that_move_the_activation_less(subject: probekit.Subject) -> None:
    def output(iterations: int) -> float:
        result = walked(subject, steps=3, walkers=3, iterations=iterations, correction_iterations=5)
        return float(result.metrics["block.1/null space/output_l2_median"] or 0)

    outputs = [output(iterations) for iterations in (2, 8, ENTRIES)]
    assert outputs[0] > 1.5 * outputs[1] > 1.5**2 * outputs[2]


@pytest.mark.parametrize("prompt", [[5], [5, 17]])
def test_iterations_beyond_a_prompts_entries_are_none(subject: probekit.Subject, prompt: list[int]) -> None:
    options = {"steps": 2, "walkers": 1, "control": False, "noise_draws": 1}
    entries = len(prompt) * WIDTH
    many = walked(subject, prompt, iterations=10_000, correction_iterations=10_000, **options)
    enough = walked(subject, prompt, iterations=entries, correction_iterations=entries, **options)
    assert many.encode() == enough.encode()


# --- corrections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.3, 0.01, 0.0])
@pytest.mark.parametrize("rank", [12, 7])
def test_a_correction_is_the_ridge_solution(rank: int, damping: float) -> None:
    """`δ = −(JᵀJ + λ²)⁻¹ Jᵀρ`, `λ = damping · σ_max`; without damping the shortest δ of the least-squares solutions,
    which has no share along what the map does not see.
    """
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((12, rank), (rank, 15))]
    matrix = factors[0] @ factors[1]
    residual = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    jacobian = Jacobian(
        lambda e: (e.flatten(1) @ matrix).view(-1, 3, 5), torch.zeros(2, 3, 4).double(), torch.ones(2, 3, 1).double()
    )
    start = jacobian.transposed_times(residual)
    found = bidiagonalise(jacobian, start, 12, lambda shape: torch.randn(shape, generator=generator))
    steps = damped_least_squares(found, residual, damping)
    J, ridge = matrix.T, damping * torch.linalg.matrix_norm(matrix, 2)
    stacked = torch.cat([J, ridge * torch.eye(12).double()])
    for step, one in zip(steps, residual, strict=True):
        right = torch.cat([one.flatten(), torch.zeros(12).double()])
        expected = -torch.linalg.pinv(stacked, rtol=1e-12) @ right
        torch.testing.assert_close(step.flatten(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("damping", [0.01, 0.001])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_corrections_bring_the_activation_nearer(spread: float, seed: int, damping: float) -> None:
    """After one step along the smallest direction: nearer than without, and a second does no harm."""
    subject = gpt2(seed=seed, n_layer=1, initializer_range=spread)
    options = {"steps": 1, "walkers": 1, "control": False, "noise_draws": 1, "damping": damping, **ALL}
    outputs = [
        float(walked(subject, corrections=corrections, **options).tables["walkers"][0]["output_l2"] or 0)
        for corrections in range(3)
    ]
    assert outputs[1] < outputs[0]
    assert outputs[2] < outputs[1] * 1.001


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_a_correction_is_the_best_there_is_across_the_heading(spread: float, seed: int) -> None:
    """`‖J δ + ρ‖² + λ²‖δ‖²` is least among the δ that are orthogonal to the heading, so that it does not go back."""
    subject = gpt2(seed=seed, n_layer=1, initializer_range=spread)
    options = {"steps": 1, "walkers": 1, "damping": 0.001, **ALL}
    step = moved(subject, walked(subject, corrections=0, **options))[0]
    result = walked(subject, corrections=1, **options)
    corrected = moved(subject, result)[0]
    assert float((corrected - step) @ step) == pytest.approx(0, abs=1e-12)

    start = start_of(subject)
    with torch.no_grad():
        target = activation(subject, start)
        residual = activation(subject, start + step) - target
    J = dense(subject, start + step)
    across = torch.linalg.svd(step[None]).Vh[1:]  # a basis of what is orthogonal to the heading
    inside = J @ across.T
    ridge = (0.001 * torch.linalg.matrix_norm(J, 2)) ** 2 * torch.eye(ENTRIES - 1).double()
    best = -across.T @ torch.linalg.solve(inside.T @ inside + ridge, inside.T @ residual)
    with torch.no_grad():
        expected = float((activation(subject, start + step + best) - target).norm())
    assert float(result.tables["walkers"][0]["output_l2"] or 0) == pytest.approx(expected, rel=0.01)


# --- what it is good for ---------------------------------------------------------------------------------------------


def test_where_the_activation_is_narrower_than_the_input_the_null_space_is_exact() -> None:
    """Llama's shared key heads: half as wide as the embedding, so that directions are there that they do not see."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    subject = probekit.Subject(LlamaForCausalLM(config).eval())
    result = walked(
        subject, sites="model.layers.0.self_attn.k_proj", steps=3, walkers=2, iterations=48, correction_iterations=48
    )
    for row in result.tables["walkers"]:
        ratio = float(row["output_l2"] or 0) / float(row["input_l2"] or 0)
        assert ratio > 0.3 if row["control"] else ratio < 1e-3


def test_an_untrained_block_hardly_notices_its_smallest_direction() -> None:
    """One block, two tokens, fp32: the activation moves a twentieth as far as the input, and in a random direction
    farther than the input.
    """
    subject = gpt2(torch.float32, width=96, n_layer=1)
    result = walked(subject, [5, 17], steps=1, walkers=2, iterations=192, step_size=0.01 / 2**0.5)
    for row in result.tables["walkers"]:
        assert float(row["input_l2"] or 0) == pytest.approx(0.01, rel=0.01)
        ratio = float(row["output_l2"] or 0) / float(row["input_l2"] or 0)
        assert ratio > 1 if row["control"] else ratio < 0.05
    assert float(result.metrics["block.0/null space/r_over_noise_l2_min"] or 0) > 20


@pytest.mark.slow
def test_an_untrained_gpt2_hardly_notices_its_smallest_direction(tmp_path: Path) -> None:
    """The 124 M configuration cut to one block, 'The sky' as ids: d_o/d_i was 0.0057 with all 1536 iterations."""
    GPT2Config().save_pretrained(tmp_path)
    subject = probekit.load(str(tmp_path), weights="random", depth=1)
    result = walked(subject, [464, 6766], directions=1, iterations=1536, steps=1, walkers=1, step_size=0.01 / 2**0.5)
    found, control = result.tables["walkers"]
    assert float(found["input_l2"] or 0) == pytest.approx(0.01, rel=0.01)
    assert float(found["output_l2"] or 0) / float(found["input_l2"] or 0) <= 0.02
    assert float(control["output_l2"] or 0) / float(control["input_l2"] or 0) > 1
