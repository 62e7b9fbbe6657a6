"""A step that is captured gives what it gives as it is, and one that cannot be captured is taken as it is.

On the CPU, in pretend graphs; on a CUDA device, where there is one, in real ones as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import probekit
from probekit.forward.graphs import EAGER_STEPS, Graphed
from tests.forward.test_replay import MODELS
from tests.pretend_graph import PretendGraph, pretend_graphs

__all__ = ["pretend_graphs"]

STEPS = 12


class Descent:
    """Gradient descent on embeddings towards the activation of others."""

    def __init__(self, subject: probekit.Subject, site: str, captured: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        target, start = torch.randn(2, 3, 5, subject.width, generator=generator).to(subject.device)
        self.x = start.clone().requires_grad_(True)
        self._layer_map = subject.layer_map(site)
        with torch.no_grad():
            self._target = self._layer_map(target)
        self.take = subject.repeated(self.step, lambda: [self.x]) if captured else self.step

    def step(self) -> torch.Tensor:
        losses = (self._layer_map(self.x) - self._target).abs().sum((1, 2))
        (gradient,) = torch.autograd.grad(losses.sum(), self.x)
        with torch.no_grad():
            self.x -= 0.01 * gradient
        return losses.detach()


def subject_of(name: str, device: str = "cpu") -> probekit.Subject:
    torch.manual_seed(0)
    return probekit.Subject(MODELS[name]().to(device))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 4)


@pytest.mark.parametrize("name", MODELS)
def test_a_captured_descent_goes_the_same_way_bit_for_bit(name: str, pretend_graphs: type[PretendGraph]) -> None:
    subject = subject_of(name)
    plain, captured = Descent(subject, "block.1", False), Descent(subject, "block.1", True)
    for _ in range(STEPS):
        assert torch.equal(captured.take(), plain.take())
    assert torch.equal(captured.x, plain.x)
    assert pretend_graphs.captures == 1
    assert pretend_graphs.replays == STEPS - EAGER_STEPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_a_descent_in_a_real_graph_goes_the_same_way_bit_for_bit(name: str) -> None:
    subject = subject_of(name, "cuda")
    plain, captured = Descent(subject, "block.1", False), Descent(subject, "block.1", True)
    for _ in range(STEPS):
        assert torch.equal(captured.take(), plain.take())
    assert torch.equal(captured.x, plain.x)
    assert isinstance(captured.take, Graphed)
    assert captured.take.replays


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("wait", [lambda x: float(x.sum()), lambda x: torch.cuda.synchronize()])
def test_a_step_that_waits_is_no_real_graph_and_random_numbers_can_still_be_drawn(
    wait: Callable[[torch.Tensor], Any],
) -> None:
    """The second is not seen before it is captured."""
    model = linear().cuda()
    x = torch.zeros(4, device="cuda")

    def step() -> torch.Tensor:
        wait(x)
        x.add_(1)
        return x.sum()

    take = Graphed(model, step, lambda: [x])
    for _ in range(STEPS):
        take()
    assert not take.replays
    assert float(x[0]) == STEPS
    torch.randn(1, device="cuda")


def test_on_the_cpu_a_step_is_the_step_itself() -> None:
    subject = subject_of("gpt2")
    step = Descent(subject, "block.0", False).step
    assert subject.repeated(step, list) is step


def test_what_a_step_returns_is_not_written_over_by_the_next(pretend_graphs: type[PretendGraph]) -> None:
    descent = Descent(subject_of("gpt2"), "block.0", True)
    losses = [descent.take() for _ in range(STEPS)]
    assert len({float(each.sum()) for each in losses}) == STEPS


def test_a_step_that_reads_a_figure_is_taken_as_it_is(pretend_graphs: type[PretendGraph]) -> None:
    x = torch.zeros(4)

    def step() -> torch.Tensor:
        x.add_(1 if float(x.sum()) < 24 else 2)
        return x.sum()

    take = Graphed(linear(), step, lambda: [x])
    for _ in range(10):
        take()
    assert x.tolist() == [6 + 2 * 4] * 4
    assert pretend_graphs.captures == 0


def test_a_step_with_a_state_that_is_not_told_is_taken_as_it_is(pretend_graphs: type[PretendGraph]) -> None:
    """A graph would add the first step's number for ever."""
    x, count = torch.zeros(2), [0]

    def step() -> torch.Tensor:
        count[0] += 1
        x.add_(count[0])
        return x.sum()

    take = Graphed(linear(), step, lambda: [x])
    for _ in range(EAGER_STEPS + 1):
        take()
    assert not take.replays


def test_hooks_that_are_put_on_later_act(pretend_graphs: type[PretendGraph]) -> None:
    subject = subject_of("gpt2")
    plain, captured = Descent(subject, "block.1", False), Descent(subject, "block.1", True)

    def both() -> None:
        assert torch.equal(captured.take(), plain.take())

    for _ in range(6):
        both()
    replays = pretend_graphs.replays
    assert replays > 0
    with subject.edit("block.0", lambda activation: activation * 0.5):
        for _ in range(3):
            both()
        assert pretend_graphs.replays == replays
    for _ in range(3):
        both()
    assert pretend_graphs.replays == replays + 3
    assert torch.equal(captured.x, plain.x)


def test_nothing_is_captured_while_there_are_hooks(pretend_graphs: type[PretendGraph]) -> None:
    subject = subject_of("gpt2")
    seen: list[Any] = []
    handle = subject.model.transformer.h[0].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr]
    descent = Descent(subject, "block.1", True)
    seen.clear()
    for _ in range(STEPS):
        descent.take()
    handle.remove()
    assert len(seen) >= STEPS
    assert pretend_graphs.captures == 0


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("no memory")])
def test_a_capture_that_fails_leaves_the_step_as_it_was(
    error: Exception, pretend_graphs: type[PretendGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PretendGraph, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        step()
        raise error

    monkeypatch.setattr(PretendGraph, "capture", fail)
    subject = subject_of("gpt2")
    plain, captured = Descent(subject, "block.1", False), Descent(subject, "block.1", True)
    for _ in range(STEPS):
        assert torch.equal(captured.take(), plain.take())
    assert torch.equal(captured.x, plain.x)


def test_a_graph_that_gives_other_figures_is_not_used(
    pretend_graphs: type[PretendGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of("gpt2")
    plain, captured = Descent(subject, "block.1", False), Descent(subject, "block.1", True)
    replay = PretendGraph.replay

    def wrong(self: PretendGraph) -> None:
        replay(self)
        with torch.no_grad():
            captured.x.mul_(1 + 1e-6)

    monkeypatch.setattr(PretendGraph, "replay", wrong)
    for _ in range(STEPS):
        assert torch.equal(captured.take(), plain.take())
    assert torch.equal(captured.x, plain.x)
    assert pretend_graphs.captures == 1


def test_a_step_that_is_computed_while_it_should_be_captured_is_not_lost(
    pretend_graphs: type[PretendGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a stream of another device: the graph stays empty, and would leave everything where it is."""
    x = torch.zeros(1)

    def step() -> torch.Tensor:
        x.add_(1)
        return x.sum()

    monkeypatch.setattr(PretendGraph, "capture", lambda self, step: step())
    monkeypatch.setattr(PretendGraph, "replay", lambda self: None)
    take = Graphed(linear(), step, lambda: [x])
    for _ in range(STEPS):
        take()
    assert float(x) == STEPS


def test_memory_that_runs_out_in_the_step_itself_is_raised(pretend_graphs: type[PretendGraph]) -> None:
    calls: list[int] = []

    def step() -> torch.Tensor:
        calls.append(1)
        if len(calls) > EAGER_STEPS:
            raise torch.OutOfMemoryError("no memory")
        return torch.zeros(1)

    take = Graphed(linear(), step, lambda: [torch.zeros(1)])
    for _ in range(EAGER_STEPS):
        take()
    with pytest.raises(torch.OutOfMemoryError):
        take()


# --- the analyses that repeat a step ----------------------------------------------------------------------------------


def result_of(subject: probekit.Subject, name: str, options: dict[str, Any]) -> probekit.Result:
    from probekit.plugins import Plugins

    analysis = Plugins().analysis(name)
    prompts = [probekit.Prompt("", torch.tensor([[3, 7, 11, 4]]), ["a", "b", "c", "d"])]
    made: Any = analysis(analysis.options_model(**options), probekit.Context(0, name))
    found: probekit.Result = made.run(subject, prompts)
    return found


SHORT = {"steps": 9, "restarts": 2, "record_every": 3, "top_k": 2, "next_token": False}


@pytest.mark.parametrize(
    ("name", "options", "close"),
    [
        ("gradient-inverter", {**SHORT, "optimizer": "adam"}, 1e-5),
        ("gradient-inverter", {**SHORT, "optimizer": "descent"}, 1e-5),
        ("gradient-inverter", {**SHORT, "optimizer": "adam", "embedding_box": True, "nearest_pull": 0.1}, 1e-5),
        ("clamped-walk", {"steps": 4, "inner": [5], "walkers": 2, "control": False}, 0.0),
        ("clamped-walk", {"steps": 3, "inner": [5], "walkers": 2, "control": False, "learning_rate": 1e-3}, 0.0),
    ],
)
def test_an_analysis_finds_the_same_in_graphs(
    name: str, options: dict[str, Any], close: float, request: pytest.FixtureRequest
) -> None:
    """Adam's arithmetic on a device's own count of steps differs from that on Python's by rounding."""
    subject = subject_of("gpt2")
    plain = result_of(subject, name, options)
    pretend = request.getfixturevalue("pretend_graphs")
    captured = result_of(subject, name, options)
    assert pretend.replays > 0
    assert plain.tensors.keys() == captured.tensors.keys()
    for key, tensor in plain.tensors.items():
        found: Any = captured.tensors[key]
        torch.testing.assert_close(found, tensor, rtol=close, atol=close, equal_nan=True)


def test_an_inversion_that_draws_dropout_masks_is_not_captured(pretend_graphs: type[PretendGraph]) -> None:
    result_of(subject_of("gpt2"), "gradient-inverter", {**SHORT, "dropout": True})
    assert pretend_graphs.captures == 0


def test_line_searches_are_not_captured(pretend_graphs: type[PretendGraph]) -> None:
    result_of(subject_of("gpt2"), "gradient-inverter", {**SHORT, "optimizer": "lbfgs"})
    assert pretend_graphs.captures == 0
