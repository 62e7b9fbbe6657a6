"""The one trainer: the same seed gives the same weights, also where it was interrupted; schedules and budgets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import probekit
from probekit_plugins.losses import curve
from probekit_plugins.trainer import Step, learning_rate, train
from probekit_plugins.training_options import TrainingOptions

DRAWN = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = TrainingOptions(steps=60, batch=32)


class Kept:
    """Where a run keeps states: saves at every step, and asks to stop after some."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.kept: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
        self.left = stop_after

    def read(self, kind: str, label: str) -> dict[str, torch.Tensor] | None:
        found = self.kept.get((kind, label))
        return None if found is None else dict(found)

    def write(self, kind: str, label: str, state: dict[str, torch.Tensor]) -> None:
        self.kept[kind, label] = {name: tensor.detach().clone() for name, tensor in state.items()}

    def due(self) -> bool:
        return True

    def stop_asked(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


class Noisy(nn.Module):
    """Something with a buffer that changes and a loss that draws."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.map = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        self.seen += 1
        noise = torch.randn(x.shape, generator=step.generator)
        return (self.map(x + 0.1 * noise / self.seen.clamp(min=1)) - x).square().mean()


def batch(number: int) -> torch.Tensor:
    return DRAWN[torch.randint(len(DRAWN), (32,), generator=torch.Generator().manual_seed(number))]


def trained(context: probekit.Context, options: TrainingOptions = OPTIONS, key: str = "a") -> tuple[Noisy, Any]:
    module = Noisy()
    return module, train(module, module.loss, batch, options, context, key)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, state(other)[name]) for name, value in state(one).items())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (trained(probekit.Context(seed))[0] for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


def test_it_learns() -> None:
    _, training = trained(probekit.Context(), TrainingOptions(steps=60, batch=32, learning_rate=0.05))
    assert training.losses[-5:].mean() < 0.3 * training.losses[:5].mean()
    assert training.steps == 60
    assert curve(training.losses)[-1][0] == 60


@pytest.mark.parametrize("stops", [[1], [17], [59], [5, 5, 20]])
def test_an_interrupted_training_ends_with_the_same_bits(stops: list[int]) -> None:
    whole, training = trained(probekit.Context())
    store = Kept()
    for stop in stops:
        store.left = stop
        with pytest.raises(KeyboardInterrupt):
            trained(probekit.Context(store=store))
    store.left = None
    resumed, again = trained(probekit.Context(store=store))
    assert equal(whole, resumed)
    assert torch.equal(training.losses, again.losses)


def test_a_training_that_has_ended_is_read_back_and_not_computed_again() -> None:
    store = Kept()
    first, training = trained(probekit.Context(store=store))
    module = Noisy()

    def never(x: torch.Tensor, step: Step) -> torch.Tensor:
        raise AssertionError("computed again")

    again = train(module, never, batch, OPTIONS, probekit.Context(store=store), "a")
    assert equal(first, module)
    assert again.seconds == training.seconds


def test_the_seconds_end_a_training_and_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr("probekit_plugins.trainer.time.perf_counter", lambda: next(clock))
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def seen(self: Any, *given: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    options = TrainingOptions(steps=10_000, batch=32, seconds=10, warmup=0.0)
    _, training = trained(probekit.Context(), options)
    assert training.steps == 20
    assert rates[0] == pytest.approx(options.learning_rate)
    assert rates[-1] < 0.06 * options.learning_rate


@pytest.mark.parametrize(("schedule", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules(schedule: Any, halfway: float) -> None:
    options = TrainingOptions(schedule=schedule, learning_rate=1.0, warmup=0.2)
    assert learning_rate(options, 0.0, 0.01) == pytest.approx(0.05)
    assert learning_rate(options, 0.1, 0.01) == pytest.approx(0.55)
    assert learning_rate(options, 0.2, 0.01) == pytest.approx(1.0)
    assert learning_rate(options, 0.6, 0.01) == pytest.approx(halfway)
    assert learning_rate(options, 1.0, 0.01) == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_a_loss_that_is_not_finite_is_a_sentence() -> None:
    module = Noisy()

    def broken(x: torch.Tensor, step: Step) -> torch.Tensor:
        return module.loss(x, step) * (float("nan") if step.number == 30 else 1.0)

    with pytest.raises(probekit.AnalysisError, match=r"training a is not finite at step 31; lower the learning rate"):
        train(module, broken, batch, OPTIONS, probekit.Context(), "a")


def test_gradients_are_clipped_and_frozen_parameters_stay() -> None:
    module = Noisy()
    module.map.bias.requires_grad_(False)
    before = module.map.bias.clone()
    train(module, lambda x, step: 1e6 * module.loss(x, step), batch, OPTIONS, probekit.Context(), "a")
    assert torch.equal(module.map.bias, before)
    assert bool(module.map.weight.isfinite().all())
    assert not module.training
