"""Products with the Jacobian of a layer map against the Jacobian itself, and what Krylov spaces tell of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import probekit
from probekit_plugins.jacobian import Bidiagonal, Jacobian, bidiagonalise, dense

PROMPTS = [[5, 17, 2, 40], [9, 33]]
# Llama's norms and rotations are fp32 inside, whatever the model's precision.
TOLERANCE = {"GPT2LMHeadModel": 1e-11, "LlamaForCausalLM": 1e-4}


def gpt2(**settings: Any) -> torch.nn.Module:
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **settings}, bos_token_id=0, eos_token_id=0))


def llama() -> torch.nn.Module:
    """With key/value heads that are shared, as in today's models, and weights large enough to be no identity."""
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
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def subject(request: pytest.FixtureRequest) -> probekit.Subject:
    torch.manual_seed(0)
    model = gpt2(initializer_range=0.3) if request.param == "gpt2" else llama()
    return probekit.Subject(model.double().eval())


def padded(subject: probekit.Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Both prompts as one batch of embeddings, and the mask."""
    ids = torch.tensor([PROMPTS[0], [*PROMPTS[1], 7, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.float64)[..., None]
    return subject.embed(ids), mask


def assert_near(subject: probekit.Subject, found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same up to the rounding of the model's own arithmetic."""
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= TOLERANCE[type(subject.model).__name__] * float(expected.norm())


def by_rows(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """`J`, `[T w, T d]`, by one backward pass for each entry of the output."""
    leaf = at.clone().requires_grad_()
    outputs = function(leaf).flatten()
    return torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0].flatten() for one in outputs])


def reference(subject: probekit.Subject, ids: list[int], block: int) -> torch.Tensor:
    """`J` of one prompt, alone, through the model's own forward on `inputs_embeds`: no hook of ours, no padding."""
    kept: list[Any] = []
    handle = subject.anatomy.blocks[block].register_forward_hook(lambda module, inputs, output: kept.append(output))

    def activation(embeddings: torch.Tensor) -> torch.Tensor:
        model: Any = subject.model
        model(inputs_embeds=embeddings[None], use_cache=False)
        found = kept[-1][0] if isinstance(kept[-1], tuple) else kept[-1]
        return found[0]

    try:
        return by_rows(activation, subject.embed(torch.tensor([ids]))[0])
    finally:
        handle.remove()


# --- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [0, 1])
def test_products_are_those_of_the_dense_jacobian_and_padding_has_none(subject: probekit.Subject, block: int) -> None:
    embeddings, mask = padded(subject)
    jacobian = Jacobian(subject.layer_map(f"block.{block}"), embeddings, mask)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):  # products may be taken again and again
        v, u = (torch.randn(embeddings.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        pushed, pulled = jacobian.times(v), jacobian.transposed_times(u)
        for row, ids in enumerate(PROMPTS):
            J, length = reference(subject, ids, block), len(ids)
            assert_near(subject, pushed[row, :length].flatten(), J @ v[row, :length].flatten())
            assert_near(subject, pulled[row, :length].flatten(), J.T @ u[row, :length].flatten())
            assert bool((pushed[row, length:] == 0).all())
            assert bool((pulled[row, length:] == 0).all())


def test_the_dense_jacobian_for_small_models_is_the_jacobian(subject: probekit.Subject) -> None:
    embeddings = subject.embed(torch.tensor([PROMPTS[0]]))[0]
    expected = reference(subject, PROMPTS[0], 1)
    for rows_at_once in (1, 7, 256):
        assert_near(subject, dense(subject.layer_map("block.1"), embeddings, rows_at_once), expected)


def test_the_output_is_the_activation(subject: probekit.Subject) -> None:
    embeddings, mask = padded(subject)
    jacobian = Jacobian(subject.layer_map("block.1"), embeddings, mask)
    expected = subject.layer_map("block.1")(embeddings) * mask
    assert_near(subject, jacobian.output, expected)
    assert not jacobian.output.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_in_lower_precisions_are_as_good_as_these(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = gpt2(initializer_range=0.3).eval()
    exact = probekit.Subject(gpt2().double().eval())
    exact.model.load_state_dict({name: part.to(dtype).double() for name, part in model.state_dict().items()})
    J = reference(exact, PROMPTS[0], 1)
    subject = probekit.Subject(model.to(dtype))
    embeddings = subject.embed(torch.tensor([PROMPTS[0]])).float()
    jacobian = Jacobian(subject.layer_map("block.1"), embeddings, torch.ones(1, 4, 1))
    v, u = (torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for found, expected in (
        (jacobian.times(v), J @ v.double().flatten()),
        (jacobian.transposed_times(u), J.T @ u.double().flatten()),
    ):
        assert found.dtype == torch.float64
        error = float((found.flatten() - expected).norm() / expected.norm())
        assert error < 30 * torch.finfo(dtype).eps
    assert jacobian.precision() == torch.finfo(dtype).eps


def test_int8_products_are_adjoint_and_near_finite_differences(tmp_path: Path) -> None:
    """bitsandbytes' int8 layers have no forward mode, and round what they read: a wide difference smooths that out."""
    torch.manual_seed(0)
    gpt2(n_embd=64).save_pretrained(tmp_path)
    subject = probekit.load(str(tmp_path), quantization="int8")
    embeddings = subject.embed(torch.tensor(PROMPTS[:1])).float()
    layer_map = subject.layer_map("block.1")
    jacobian = Jacobian(layer_map, embeddings, torch.ones(1, 4, 1))
    v, u = (torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    pushed = jacobian.times(v)
    product = float((v * jacobian.transposed_times(u)).sum())
    assert float((pushed * u).sum()) == pytest.approx(product, abs=1e-5 * float(pushed.norm() * u.norm()))
    step = 0.005
    with torch.no_grad():
        difference = (layer_map(embeddings + step * v) - layer_map(embeddings - step * v)).double() / (2 * step)
    beyond = pushed - v.double()  # what the residual stream does not carry over by itself
    assert float(beyond.norm()) > 0.5 * float(v.norm())
    assert float((pushed - difference).norm()) < 0.08 * float(beyond.norm())


# --- bidiagonalisation -----------------------------------------------------------------------------------------------

T, D = 3, 4
MAPS = {  # (width of the output, rank)
    "taller than wide": (5, 12),
    "square": (4, 12),
    "rank 7 of 12": (5, 7),
    "rank 7 of 12, square": (4, 7),
    "rank 1": (5, 1),
    "wider than tall": (3, 9),
    "wider than tall, rank 5": (3, 5),
}


def linear(width: int, rank: int, scale: float = 1.0) -> torch.Tensor:
    """A matrix `[T d, T w]` with the singular values `scale · 1 … rank` and zeros."""
    generator = torch.Generator().manual_seed(3)
    left, _ = torch.linalg.qr(torch.randn(T * D, rank, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(T * width, rank, generator=generator, dtype=torch.float64))
    return scale * left * torch.arange(1.0, rank + 1).double() @ right.T


def bases(matrix: torch.Tensor, iterations: int = T * D) -> tuple[Bidiagonal, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bidiagonalisation of `e ↦ e M` for two rows at once; V, U and J of the second, as matrices."""
    width = matrix.shape[1] // T
    start = torch.randn(2, T, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    noise = torch.Generator().manual_seed(5)
    jacobian = Jacobian(
        lambda e: (e.flatten(1) @ matrix).view(-1, T, width), start, torch.ones(2, T, 1, dtype=torch.float64)
    )
    found = bidiagonalise(jacobian, start, iterations, lambda shape: torch.randn(shape, generator=noise))
    return found, found.right[1].flatten(1).T, found.left[1].flatten(1).T, matrix.T


def assert_orthonormal(columns: torch.Tensor) -> None:
    eye = torch.eye(columns.shape[1], dtype=columns.dtype)
    torch.testing.assert_close(columns.T @ columns, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MAPS)
def test_all_iterations_give_every_singular_value_as_often_as_it_is_there(kind: str) -> None:
    """Also where a map has a null space: its zeros are counted, and its null vectors are among the right ones."""
    width, rank = MAPS[kind]
    found, V, U, J = bases(linear(width, rank))
    assert_orthonormal(V)
    assert_orthonormal(U[:, : T * width])
    torch.testing.assert_close(J @ V, U @ found.matrix[1], rtol=0, atol=1e-11)
    values, _, right, residuals = found.triplets()
    expected = torch.zeros(T * D, dtype=torch.float64)
    expected[:rank] = torch.arange(rank, 0, -1)
    for row in range(2):
        torch.testing.assert_close(values[row], expected, rtol=1e-11, atol=1e-11)
        assert float(residuals[row].max()) < 1e-11
    null = found.combine(right[..., rank:])[1].flatten(1)
    assert_orthonormal(null.T)
    torch.testing.assert_close(J @ null.T, torch.zeros(T * width, T * D - rank).double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-14, 1e14])
def test_the_scale_of_a_map_does_not_matter(scale: float) -> None:
    found, V, U, J = bases(linear(5, 12, scale))
    assert_orthonormal(V)
    assert_orthonormal(U)
    torch.testing.assert_close(J @ V / scale, U @ found.matrix[1] / scale, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.triplets()[0][0], torch.linalg.svdvals(J), rtol=1e-11, atol=0)


@pytest.mark.parametrize("iterations", [1, 3, 6, 11])
def test_a_part_of_the_iterations_gives_values_within_their_residuals(iterations: int) -> None:
    found, V, U, J = bases(linear(5, 12), iterations)
    assert_orthonormal(V)
    assert_orthonormal(U)
    torch.testing.assert_close(J @ V, U @ found.matrix[1], rtol=0, atol=1e-11)
    values, left, right, residuals = found.triplets()
    lefts, rights = U @ left[1], V @ right[1]
    torch.testing.assert_close(J @ rights, lefts * values[1], rtol=0, atol=1e-11)
    torch.testing.assert_close((J.T @ lefts - rights * values[1]).norm(dim=0), residuals[1], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.combine(right)[1].flatten(1).T, rights, rtol=0, atol=1e-13)
    exact = torch.linalg.svdvals(J)
    assert bool(((values[1][:, None] - exact).abs().amin(1) <= residuals[1] + 1e-11).all())


def test_each_row_is_bidiagonalised_by_itself_whatever_its_padding(subject: probekit.Subject) -> None:
    """At as many iterations as the shorter prompt has entries: all of its singular values, and the larger ones'
    bounds of the longer.
    """
    embeddings, mask = padded(subject)
    jacobian = Jacobian(subject.layer_map("block.1"), embeddings, mask)
    start = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    entries = len(PROMPTS[1]) * subject.width
    done = []
    found = bidiagonalise(jacobian, start, entries, torch.randn, lambda: done.append(1))
    assert len(done) == entries
    for row, ids in enumerate(PROMPTS):
        assert bool((found.right[row, :, len(ids) :] == 0).all())
        assert bool((found.left[row, :, len(ids) :] == 0).all())
        assert_orthonormal(found.right[row].flatten(1).T)
        assert_orthonormal(found.left[row].flatten(1).T)
    values, _, _, residuals = found.triplets()
    assert_near(subject, values[1], torch.linalg.svdvals(reference(subject, PROMPTS[1], 1)))
    exact = torch.linalg.svdvals(reference(subject, PROMPTS[0], 1))
    nearest = (values[0][:, None] - exact).abs().amin(1)
    assert bool((nearest <= residuals[0] + TOLERANCE[type(subject.model).__name__]).all())
