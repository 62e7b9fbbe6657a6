"""The orthogonal walk: the source page's code in a few lines beside it, and directions orthogonal to the gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit_plugins.orthogonal_walk import OrthogonalWalk, OrthogonalWalkOptions
from probekit_plugins.orthogonal_walk.strides import Orthogonal, Random
from probekit_plugins.walks.walkers import Walkers

IDS = [5, 17, 2, 40]
ETA = 0.01


def gpt2(dtype: torch.dtype = torch.float64, width: int = 24) -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_positions=16, n_embd=width, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return probekit.Subject(GPT2LMHeadModel(config).to(dtype).eval())


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def prompt_of(subject: probekit.Subject, ids: list[int]) -> probekit.Prompt:
    checked = subject.check_ids(ids)
    return probekit.Prompt("", checked, subject.tokens(checked))


def walked(subject: probekit.Subject, *prompts: list[int], seed: int = 0, **options: Any) -> probekit.Result:
    analysis = OrthogonalWalk(OrthogonalWalkOptions(**options), probekit.Context(seed))
    return analysis.run(subject, [prompt_of(subject, ids) for ids in prompts or (IDS,)])


def activation(subject: probekit.Subject, embeddings: torch.Tensor) -> torch.Tensor:
    """The last block's, `[T, d]` → `[T, d]`: GPT-2's own modules one after another, without hooks."""
    transformer: Any = subject.model.transformer
    hidden = embeddings[None] + transformer.wpe(torch.arange(len(embeddings)))
    for block in transformer.h:
        found = block(hidden, use_cache=False)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden[0]


def gradient(subject: probekit.Subject, embeddings: torch.Tensor) -> torch.Tensor:
    """The page's `layer_gradient`."""
    leaf = embeddings.clone().requires_grad_()
    return torch.autograd.grad(activation(subject, leaf).sum(), leaf)[0]


def drawn(subject: probekit.Subject, walker: int) -> torch.Tensor:
    """The random vectors of a walker of the first prompt at the last block, `[T, d]`."""
    generator = probekit.Context(0).generator(f"block.1/0/{walker}/direction")
    return torch.randn(len(IDS), subject.width, generator=generator, dtype=torch.float64)


def test_the_transcription_has_the_models_activation(subject: probekit.Subject) -> None:
    ids = torch.tensor([IDS])
    found = activation(subject, subject.embed(ids)[0])
    torch.testing.assert_close(found, subject.capture(ids, ["block.1"])["block.1"][0], rtol=1e-12, atol=1e-14)


# --- the formula -----------------------------------------------------------------------------------------------------

T = len(IDS)
ROWS = {
    ("svd-last", True): lambda rows: rows[-1],
    ("svd-first", True): lambda rows: rows[T],
    ("svd-last", False): lambda rows: rows[-T:],
    ("svd-first", False): lambda rows: rows[T : 2 * T],
}


@pytest.mark.parametrize(("direction", "broadcast"), ROWS)
def test_svd_steps_are_the_source_pages(subject: probekit.Subject, direction: str, broadcast: bool) -> None:
    """Its `tangent_walk` with η = 0.01: the last row of Vᴴ as in its code, or the one after the sequence's length."""
    result = walked(subject, direction=direction, broadcast=broadcast, steps=8, walkers=2)
    start = subject.embed(torch.tensor([IDS]))[0]
    embedding = start
    for _ in range(8):
        rows = torch.linalg.svd(gradient(subject, embedding)).Vh
        embedding = embedding + ETA * ROWS[direction, broadcast](rows)
    found = result.tensors["0/block.1/orthogonal/embeddings"]
    for row in found:  # nothing about these walkers is random
        torch.testing.assert_close(row - start, embedding - start, rtol=1e-9, atol=1e-12)
    assert float(result.metrics["block.1/orthogonal/orthogonality_max"] or 0) < 1e-13


@pytest.mark.parametrize("broadcast", [True, False], ids=["one for all positions", "one each"])
def test_projected_steps_are_the_walkers_own_vectors_less_what_the_gradient_spans(
    subject: probekit.Subject, broadcast: bool
) -> None:
    """By least squares, which knows nothing of QR: `v = z − gᵀx` with x least in `‖gᵀx − z‖`."""
    result = walked(subject, broadcast=broadcast, steps=5, walkers=2)
    start = subject.embed(torch.tensor([IDS]))[0]
    for walker, found in enumerate(result.tensors["0/block.1/orthogonal/embeddings"]):
        z = drawn(subject, walker)[:1] if broadcast else drawn(subject, walker)
        embedding = start
        for _ in range(5):
            columns = gradient(subject, embedding).T
            v = z.T - columns @ torch.linalg.lstsq(columns, z.T, driver="gelsd").solution
            embedding = embedding + ETA * (v / v.norm(dim=0)).T
        torch.testing.assert_close(found - start, embedding - start, rtol=1e-9, atol=1e-12)


def test_the_control_goes_straight_along_its_own_vector(subject: probekit.Subject) -> None:
    result = walked(subject, steps=5, walkers=2)
    start = subject.embed(torch.tensor([IDS]))[0]
    for walker, found in enumerate(result.tensors["0/block.1/random/embeddings"]):
        expected = (5 * ETA * normalize(drawn(subject, walker)[:1], dim=-1)).expand(T, -1)
        torch.testing.assert_close(found - start, expected, rtol=1e-9, atol=1e-12)


def test_random_rows_are_null_vectors_that_change_from_step_to_step(subject: probekit.Subject) -> None:
    """Rows of Vᴴ past the sequence's length, different ones for each position, walker and step."""
    walkers = Walkers(subject, [prompt_of(subject, IDS)], "block.1", 2, probekit.Context())
    stride = Orthogonal(walkers, OrthogonalWalkOptions(direction="svd-random", broadcast=False, step_size=1.0))
    g = gradient(subject, walkers.embeddings[0])
    first, again, second = (stride(walkers.embeddings, step) for step in (0, 0, 1))
    for rows in (first[0], first[1], second[0]):
        torch.testing.assert_close(rows @ rows.T, torch.eye(T, dtype=rows.dtype), atol=1e-12, rtol=0)
        assert float((g @ rows.T).abs().max() / g.norm()) < 1e-14
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, second)


def test_the_summed_activation_stays_as_it_is_to_first_order(subject: probekit.Subject) -> None:
    """A tenth of the step changes ΣO by a hundredth, and in a random direction by a tenth."""

    def change(kind: type[Random], step_size: float) -> float:
        walkers = Walkers(subject, [prompt_of(subject, IDS)], "block.1", 1, probekit.Context())
        moved = kind(walkers, OrthogonalWalkOptions(step_size=step_size))(walkers.embeddings, 0)
        with torch.no_grad():
            before, after = (activation(subject, e[0]).sum() for e in (walkers.embeddings, walkers.embeddings + moved))
        return abs(float(after - before))

    assert change(Orthogonal, 1e-4) / change(Orthogonal, 1e-5) == pytest.approx(100, rel=0.05)
    assert change(Random, 1e-4) / change(Random, 1e-5) == pytest.approx(10, rel=0.05)


# --- how orthogonal, and how far -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("model", ["gpt2", "fc-token,width=24,vocabulary=60"])
@pytest.mark.parametrize("broadcast", [True, False], ids=["one for all positions", "one each"])
def test_projected_directions_are_orthogonal_to_rounding(
    model: str, dtype: torch.dtype, bound: float, broadcast: bool
) -> None:
    name = str(dtype).removeprefix("torch.")
    subject = gpt2(dtype) if model == "gpt2" else probekit.load(model, plugins=probekit.Plugins(), dtype=name)
    result = walked(subject, IDS, list(range(9)), broadcast=broadcast, steps=6, walkers=3, record_every=1)
    for prompt in range(2):
        found = result.tensors[f"{prompt}/block.1/orthogonal/orthogonality"]
        assert found.shape == (6, 3)
        assert float(found.max()) <= bound
    assert float(result.metrics["block.1/orthogonal/orthogonality_max"] or 0) <= bound
    assert float(result.metrics["block.1/random/orthogonality_max"] or 0) > 0.1, "a random direction is not"

    walkers = Walkers(subject, [prompt_of(subject, IDS)], "block.1", 1, probekit.Context())
    leaf = walkers.embeddings.clone().requires_grad_()
    (g,) = torch.autograd.grad(subject.layer_map("block.1")(leaf).double().sum(), leaf)
    u = Orthogonal(walkers, OrthogonalWalkOptions(broadcast=broadcast))(leaf.detach(), 0).double()
    angles = (g.double() @ u.mT).abs() / (g.double().norm(dim=-1)[..., None] * u.norm(dim=-1)[..., None, :])
    assert float(angles.max()) <= bound, "every vector, to the gradient of every position"


@pytest.mark.parametrize("direction", ["projected", "svd-first", "svd-last", "svd-random"])
@pytest.mark.parametrize("broadcast", [True, False], ids=["one for all positions", "one each"])
def test_every_position_goes_eta_in_both_tracks(subject: probekit.Subject, direction: str, broadcast: bool) -> None:
    result = walked(subject, direction=direction, broadcast=broadcast, step_size=0.3, steps=1, walkers=2)
    start = subject.embed(torch.tensor([IDS]))[0]
    for track in ("orthogonal", "random"):
        moved = result.tensors[f"0/block.1/{track}/embeddings"] - start
        torch.testing.assert_close(moved.norm(dim=-1), torch.full((2, T), 0.3, dtype=torch.float64), rtol=1e-9, atol=0)
        together = bool((moved - moved[:, :1]).abs().max() < 1e-12)
        assert together == broadcast, "one vector for all positions, or one for each"


# --- where there is no room ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["projected", "svd-first", "svd-last", "svd-random"])
def test_a_sequence_as_long_as_the_width_has_no_such_direction(direction: str) -> None:
    narrow = gpt2(width=8)
    with pytest.raises(probekit.UsageError) as raised:
        walked(narrow, [1, 2], list(range(8)), direction=direction)
    assert str(raised.value) == (
        "A prompt of 8 tokens leaves 0 directions of the 8-wide embedding orthogonal to its gradient, but this walk "
        "needs 1; shorten it."
    )
    fits = walked(narrow, [1, 2], list(range(7)), direction=direction, steps=2, walkers=1)
    assert float(fits.metrics["block.1/orthogonal/orthogonality_max"] or 0) < 1e-12


@pytest.mark.parametrize("direction", ["svd-first", "svd-last", "svd-random"])
def test_a_row_for_each_position_needs_as_many_rows(direction: str) -> None:
    narrow = gpt2(width=8)
    with pytest.raises(probekit.UsageError, match=r"^A prompt of 5 tokens leaves 3 .* but this walk needs 5; shorten"):
        walked(narrow, list(range(5)), direction=direction, broadcast=False)
    for ids, choice in ((list(range(4)), direction), (list(range(7)), "projected")):
        fits = walked(narrow, ids, direction=choice, broadcast=False, steps=2, walkers=1)
        assert float(fits.metrics["block.1/orthogonal/orthogonality_max"] or 0) < 1e-12


def test_the_gradient_of_the_sum_is_compared_with_a_loop_over_outputs_and_a_backward_pass_of_ones() -> None:
    subject = gpt2(torch.float32)
    result = walked(subject, steps=1, walkers=1, gradient_check=True)
    rows = {str(row["way"]): row for row in result.tables["gradients"]}
    embeddings = subject.embed(torch.tensor([IDS]))[0]
    summed = gradient(subject, embeddings)
    looped = torch.zeros_like(summed)
    for output in range(summed.numel()):  # the page's `individual_gradient`
        leaf = embeddings.clone().requires_grad_()
        looped += torch.autograd.grad(activation(subject, leaf).flatten()[output], leaf)[0]
    assert rows["per output"]["outputs"] == summed.numel()
    assert rows["per output"]["gradient_rms"] == pytest.approx(float(summed.square().mean().sqrt()), rel=1e-5)
    # Rounding of two loops of the same kind: not the same digits, but of one size, and far below the gradient.
    assert 0 < float(rows["per output"]["difference"] or 0) < 20 * float((looped - summed).abs().max())
    assert float(rows["per output"]["relative_difference"] or 0) < 1e-5
    assert rows["backward of ones"]["difference"] == 0


def test_gradients_are_not_compared_unless_asked_for(subject: probekit.Subject) -> None:
    assert "gradients" not in walked(subject, steps=1, walkers=1).tables
