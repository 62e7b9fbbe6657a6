"""The clamped walk: the source page's code and formula in a few lines beside it, and what descending is good for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

import probekit
from probekit_plugins.clamped_walk import ClampedWalk, ClampedWalkOptions

IDS = [5, 17, 2, 40]
WIDTH = 24
PAGE = {"steps": 10, "noise": 2e-4, "inner": 31, "learning_rate": 2e-5}


def gpt2(dtype: torch.dtype = torch.float64, **settings: Any) -> probekit.Subject:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=60, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, **settings
    )
    return probekit.Subject(GPT2LMHeadModel(config).to(dtype).eval())


@pytest.fixture(scope="module")
def subject() -> probekit.Subject:
    return gpt2()


def walked(subject: probekit.Subject, *prompts: list[int], seed: int = 0, **options: Any) -> probekit.Result:
    analysis = ClampedWalk(ClampedWalkOptions(**options), probekit.Context(seed))
    ids = [subject.check_ids(given) for given in prompts or (IDS,)]
    return analysis.run(subject, [probekit.Prompt("", each, subject.tokens(each)) for each in ids])


def moved(subject: probekit.Subject, result: probekit.Result, track: str) -> torch.Tensor:
    """`e_N − e*` of every walker of the first prompt, `[K, T, d]`."""
    found: torch.Tensor = result.tensors[f"0/block.1/{track}/embeddings"] - subject.embed(torch.tensor([IDS]))
    return found


def activation(subject: probekit.Subject, embeddings: torch.Tensor) -> torch.Tensor:
    """The last block's, `[T, d]` → `[T, d]`: GPT-2's own modules one after another, without hooks."""
    transformer: Any = subject.model.transformer
    hidden = embeddings[None] + transformer.wpe(torch.arange(len(embeddings)))
    for block in transformer.h:
        found = block(hidden, use_cache=False)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden[0]


def target_gradient(subject: probekit.Subject, embeddings: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The page's function of that name."""
    leaf = embeddings.clone().requires_grad_()
    loss = torch.sum(torch.abs(activation(subject, leaf) - target))
    return torch.autograd.grad(loss, leaf)[0]


def shift(step: int, walker: int = 0, seed: int = 0) -> tuple[int, torch.Tensor]:
    """The index and the noise `[T, d]` of a step of a walker of the first prompt."""
    generator = probekit.Context(seed).generator(f"block.1/0/{walker}/shift {step}")
    index = int(torch.randint(WIDTH, (), generator=generator))
    return index, torch.randn(len(IDS), WIDTH, generator=generator, dtype=torch.float64)


Rate = Callable[[torch.Tensor], float]


def clamped_walk(
    subject: probekit.Subject, walker: int, steps: int, rand_eta: float, inner: int, rate: Rate, below: bool
) -> torch.Tensor:
    """The page's function of that name, `e_N − e*` of one walker; its code shifts `[clamped:]`, its formula the rest.

    `rate` gives ε from the first gradient there is.
    """
    original = subject.embed(torch.tensor([IDS]))[0]
    with torch.no_grad():
        target = activation(subject, original)
    embedding, lr = original.clone(), None
    for step in range(steps):
        clamped, noise = shift(step, walker)
        shifted, free = (slice(clamped), slice(clamped, None)) if below else (slice(clamped, None), slice(clamped))
        embedding[:, shifted] += rand_eta * noise[:, shifted]
        for _ in range(inner):
            gradient = target_gradient(subject, embedding, target)
            lr = rate(gradient) if lr is None else lr
            embedding[:, free] -= lr * gradient[:, free]
    return embedding - original


# --- the formula -----------------------------------------------------------------------------------------------------


def test_it_is_the_source_pages_code(subject: probekit.Subject) -> None:
    """Its ten steps with noise 2e-4, 31 inner steps and ε = 2e-5, in float64, to a billionth of the distance."""
    result = walked(subject, walkers=3, **PAGE)
    for walker, found in enumerate(moved(subject, result, "inner 31")):
        expected = clamped_walk(subject, walker, 10, 2e-4, 31, lambda gradient: 2e-5, below=False)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("shifted", ["above", "below"])
@pytest.mark.parametrize(("scale", "power"), [("code", 1), ("formula", 2)])
@pytest.mark.parametrize("given", [True, False], ids=["rate given", "rate chosen"])
def test_its_variants_are_the_formula(
    subject: probekit.Subject, shifted: str, scale: str, power: int, given: bool
) -> None:
    """Noise η·N(0, 1) or η·N(0, η) on one side or the other. A rate that is not given is chosen at the first gradient
    and kept: its whole step would be 0.3 times as long as noise on every column.
    """
    noise, lr = 0.05, 2.0**-13
    sigma = noise**power
    options = {"learning_rate": lr} if given else {}
    result = walked(subject, steps=4, inner=3, noise=noise, noise_scale=scale, shifted=shifted, walkers=2, **options)

    def rate(gradient: torch.Tensor) -> float:
        return lr if given else 0.3 * sigma * (len(IDS) * WIDTH) ** 0.5 / float(gradient.norm())

    for walker, found in enumerate(moved(subject, result, "inner 3")):
        expected = clamped_walk(subject, walker, 4, sigma, 3, rate, below=shifted == "below")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_noise_is_a_twentieth_of_the_embeddings_spread_unless_it_is_given(subject: probekit.Subject) -> None:
    result = walked(subject, steps=1, walkers=1)
    assert result.metrics["noise"] == pytest.approx(float(subject.embedding_matrix.std()) / 20, rel=1e-12)
    index, noise = shift(0)
    found = moved(subject, result, "shifts alone")[0, :, index:]
    torch.testing.assert_close(found, result.metrics["noise"] * noise[:, index:], rtol=1e-9, atol=1e-12)


def test_noise_is_given_over_the_embeddings_spread(subject: probekit.Subject) -> None:
    result = walked(subject, steps=1, walkers=1, relative_noise=0.5)
    assert result.metrics["noise"] == pytest.approx(float(subject.embedding_matrix.std()) / 2, rel=1e-12)
    assert walked(subject, steps=1, walkers=1, relative_noise=0.5, noise=0.1).metrics["noise"] == 0.1


def seed_with_index_zero() -> int:
    return next(seed for seed in range(1000) if shift(0, seed=seed)[0] == 0)


def test_where_all_columns_are_shifted_nothing_descends(subject: probekit.Subject) -> None:
    seed = seed_with_index_zero()
    result = walked(subject, seed=seed, steps=1, inner=[7], learning_rate=0.01, walkers=1)
    assert torch.equal(moved(subject, result, "inner 7"), moved(subject, result, "shifts alone"))
    assert float(moved(subject, result, "inner 7").abs().min()) > 0, "every column was shifted"


@pytest.mark.parametrize("rate", [{"learning_rate": 0.01}, {}], ids=["rate given", "rate chosen"])
def test_where_no_column_is_shifted_nothing_moves(subject: probekit.Subject, rate: dict[str, Any]) -> None:
    """i = 0 with the formula's side: the activation is the target, and the first gradient there is comes later."""
    seed = seed_with_index_zero()
    options = {"inner": [3], "shifted": "below", "noise": 0.05, "walkers": 1, **rate}
    first = walked(subject, seed=seed, steps=1, **options)
    assert float(moved(subject, first, "inner 3").abs().max()) < 1e-12
    further = walked(subject, seed=seed, steps=4, **options)
    assert 0.1 < float(moved(subject, further, "inner 3").norm()) < 10


def test_a_shift_that_the_models_precision_does_not_notice_is_no_breakdown() -> None:
    """The formula's noise η·N(0, η) at η = 2e-4 is lost in bf16: the activation is the target, its gradient zero."""
    result = walked(gpt2(torch.bfloat16), steps=2, inner=[2], noise=2e-4, noise_scale="formula", walkers=2)
    assert bool(torch.isfinite(result.tensors["0/block.1/inner 2/embeddings"]).all())


def test_the_prompts_own_embeddings_are_kept_apart(subject: probekit.Subject) -> None:
    """The page's code edits its argument in place; distances are from where the walk began."""
    ids = torch.tensor([IDS])
    before = subject.embed(ids).clone()
    result = walked(subject, steps=6, inner=[4], walkers=2, record_every=1)
    assert torch.equal(subject.embed(ids), before)
    distances = result.tensors["0/block.1/inner 4/input_l2"]
    assert distances[0].tolist() == [0.0, 0.0]
    assert bool((distances[1:] > 0).all())
    torch.testing.assert_close(distances[-1], moved(subject, result, "inner 4").flatten(1).norm(dim=1))
    assert result.tensors["0/block.1/inner 4/output_l2"][0].tolist() == [0.0, 0.0]


# --- several numbers of inner steps ----------------------------------------------------------------------------------


def test_each_number_of_inner_steps_is_a_track_with_the_same_shifts(subject: probekit.Subject) -> None:
    result = walked(subject, steps=1, inner=[5, 2, 2, 0], walkers=3)
    tracks = list(dict.fromkeys(row["track"] for row in result.tables["walkers"]))
    assert tracks == ["inner 5", "inner 2", "inner 0", "shifts alone"]
    control = moved(subject, result, "shifts alone")
    for walker in range(3):
        index, _ = shift(0, walker)
        for inner in (5, 2):
            found = moved(subject, result, f"inner {inner}")[walker]
            assert torch.equal(found[:, index:], control[walker, :, index:]), "what is shifted stays as it was shifted"
            assert bool((found[:, :index] != 0).all()), "and everything else descends"
        assert float(control[walker, :, :index].abs().sum()) == 0


def test_without_inner_steps_it_is_the_shifts_alone(subject: probekit.Subject) -> None:
    result = walked(subject, steps=5, inner=0, walkers=2)
    for name in ("embeddings", "output_l1", "input_l2", "noise_l2"):
        alone = result.tensors[f"0/block.1/shifts alone/{name}"]
        assert torch.equal(result.tensors[f"0/block.1/inner 0/{name}"], alone)
    assert [row["control"] for row in result.tables["walkers"]] == [False] * 2 + [True] * 2
    assert "block.1/shifts alone/r_l2_median" not in walked(subject, steps=1, control=False).metrics


@pytest.mark.parametrize("inner", [-1, [], [1, -2], "many"])
def test_a_number_of_inner_steps_is_none_or_more(inner: object) -> None:
    with pytest.raises(ValidationError):
        ClampedWalkOptions(inner=inner)  # type: ignore[arg-type]


# --- what it is good for ---------------------------------------------------------------------------------------------


def assert_inner_steps_help(result: probekit.Result, site: str, counts: list[int]) -> None:
    """The more inner steps, the less the activation has moved, also against noise of the same input distance."""
    tracks = ["shifts alone", *(f"inner {inner}" for inner in counts)]
    outputs = [float(result.metrics[f"{site}/{track}/output_l2_median"] or 0) for track in tracks]
    assert outputs == sorted(outputs, reverse=True)
    ratios = [float(result.metrics[f"{site}/{track}/r_over_noise_l2_median"] or 0) for track in tracks]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 2 * ratios[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_more_inner_steps_the_less_the_activation_moves(seed: int) -> None:
    """Weights ten times as large as GPT-2's initial ones: else a block hardly differs from the identity."""
    subject = gpt2(initializer_range=0.2)
    options = {"noise": 0.1, "relative_rate": 0.1, "noise_draws": 2}
    result = walked(subject, IDS, [9, 33], seed=seed, steps=8, inner=[1, 5, 30], **options)
    assert_inner_steps_help(result, "block.1", [1, 5, 30])


@pytest.mark.data
def test_the_more_inner_steps_the_less_a_trained_model_notices(data_folder: Path) -> None:
    subject = probekit.load(str(data_folder / "models" / "stories260k"))
    ids = subject.encode("Once upon a time, there was a little girl.")
    options = ClampedWalkOptions(steps=8, inner=[1, 10], walkers=2, noise_draws=2, record_every=8)
    result = ClampedWalk(options, probekit.Context()).run(subject, [probekit.Prompt("", ids, subject.tokens(ids))])
    assert_inner_steps_help(result, "block.4", [1, 10])
