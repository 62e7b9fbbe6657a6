"""Batches that are halved when memory runs out: what is computed again, what is set free, and what a run remembers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import probekit
from probekit.analysis.context import State
from probekit_plugins.batches import Batches

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to …")


class Limited(probekit.Options):
    rows_at_once: int | None = None


def computed(most: int, tried: list[int], error: Exception = FULL) -> Callable[[slice], torch.Tensor]:
    """Squares of the row numbers, where at most so many rows fit."""

    def compute(rows: slice) -> torch.Tensor:
        tried.append(rows.stop - rows.start)
        if tried[-1] > most:
            raise error
        return torch.arange(rows.start, rows.stop) ** 2

    return compute


@pytest.mark.parametrize("error", [FULL, CPU, MemoryError()], ids=["cuda", "cpu", "python"])
def test_batches_are_halved_until_they_fit_and_stay_so(error: Exception) -> None:
    batches, tried = Batches(probekit.Context(), Limited()), []
    wanted = torch.arange(10) ** 2
    assert torch.equal(batches.joined(10, computed(3, tried, error), "first"), wanted)
    assert tried == [10, 5, 3, 3, 3, 1]
    assert batches.notes() == [
        "Memory ran out, so that in the end 3 rows were computed at once; -o rows_at_once=3 does so from the start."
    ]
    tried.clear()
    assert torch.equal(batches.joined(10, computed(3, tried), "second"), wanted)
    assert tried == [3, 3, 3, 1]


def test_a_batch_that_fits_is_one_and_the_options_and_the_analysis_set_bounds() -> None:
    tried: list[int] = []
    batches = Batches(probekit.Context(), Limited())
    batches.joined(4, computed(9, tried), "all")
    batches.joined(4, computed(9, tried), "some", most=3)
    Batches(probekit.Context(), Limited(rows_at_once=2)).joined(4, computed(9, tried), "two")
    assert tried == [4, 3, 1, 2, 2]
    assert batches.notes() == []


def test_a_row_that_does_not_fit_is_an_error_that_says_where() -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised:
        Batches(probekit.Context()).parts(2, computed(0, []), "block.3")
    assert raised.value.__notes__ == ["at block.3, with one row at once"]


def test_another_error_is_not_taken_for_memory() -> None:
    tried: list[int] = []
    with pytest.raises(RuntimeError, match="a bug"):
        Batches(probekit.Context()).parts(4, computed(0, tried, RuntimeError("a bug")), "block.3")
    assert tried == [4]


def test_nothing_of_what_failed_is_alive_when_it_is_tried_again() -> None:
    """Neither what the traceback holds, nor what only the garbage collector finds."""
    references: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def compute(rows: slice) -> None:
        alive.append(sum(reference() is not None for reference in references))
        x = torch.randn(rows.stop - rows.start, 8, requires_grad=True)
        graph = (x * 2).exp()
        cycle: dict[str, Any] = {"graph": graph}
        cycle["itself"] = cycle
        references.extend([weakref.ref(x), weakref.ref(graph)])
        if len(x) > 1:
            try:
                raise KeyError  # what an exception was raised while handling is held by it too
            except KeyError:
                raise torch.OutOfMemoryError from None

    gc.disable()
    try:
        Batches(probekit.Context()).parts(4, compute, "here")
    finally:
        gc.enable()
    assert alive[:3] == [0, 0, 0]


class _Full(torch.autograd.Function):
    """The identity, whose backward pass does not fit."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError


def test_nothing_of_a_backward_pass_that_failed_is_alive_when_it_is_tried_again() -> None:
    """Its other branches wait in autograd's queue, which would keep them."""
    references: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def compute(rows: slice) -> None:
        alive.append(sum(reference() is not None for reference in references))
        x = torch.randn(rows.stop - rows.start, 8, requires_grad=True)
        other = x.exp()
        references.append(weakref.ref(other))
        loss = (other.sin() + (_Full.apply(x) if len(x) > 1 else x)).sum()
        torch.autograd.grad(loss, x)

    Batches(probekit.Context()).parts(4, compute, "here")
    assert alive == [0, 0, 0, 0, 0, 0]


def test_a_resumed_run_goes_on_in_the_batches_that_it_had_before() -> None:
    """Though memory would suffice by then."""
    kept: dict[str, State] = {}

    class Memory:
        def read(self, kind: str, label: str) -> State | None:
            return kept.get(f"{kind}/{label}")

        def write(self, kind: str, label: str, state: State) -> None:
            kept[f"{kind}/{label}"] = state

        def due(self) -> bool:
            return False

        def stop_asked(self) -> bool:
            return False

    tried: list[int] = []
    notes = []
    for most in (2, 100):
        batches = Batches(probekit.Context(store=Memory()), Limited())
        batches.joined(4, computed(4, tried), "first site")
        batches.joined(8, computed(most, tried), "second site")
        notes.append(batches.notes())
    assert tried == [4, 8, 4, 2, 2, 2, 2, 4, 2, 2, 2, 2]
    assert notes[0] == notes[1] != []


class Kept:
    """A store that remembers."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    def read(self, kind: str, label: str) -> State | None:
        return self.states.get(f"{kind}/{label}")

    def write(self, kind: str, label: str, state: State) -> None:
        self.states[f"{kind}/{label}"] = state

    def due(self) -> bool:
        return False

    def stop_asked(self) -> bool:
        return False


@pytest.mark.parametrize(("first", "then"), [(4, 16), (16, 1)])
def test_what_an_estimate_chose_is_chosen_again_in_a_resumed_run_whatever_is_free(first: int, then: int) -> None:
    store, notes = Kept(), []
    for fits in (first, then):
        batches = Batches(probekit.Context(store=store), Limited())
        assert batches.estimated(16, lambda count, fits=fits: fits, "here") == first
        notes.append(batches.notes())
    assert notes[0] == notes[1]


def test_an_estimate_is_not_asked_for_one_row_nor_where_the_options_say_how_many_and_a_note_says_what_it_chose() -> (
    None
):
    def never(count: int) -> int:
        raise AssertionError

    batches = Batches(probekit.Context(), Limited(rows_at_once=5))
    assert batches.estimated(16, never, "here") == 16
    batches = Batches(probekit.Context(), Limited())
    assert batches.estimated(1, never, "here") == 1
    assert batches.estimated(16, lambda count: count, "here") == 16
    assert batches.notes() == []
    assert batches.estimated(16, lambda count: 4, "here") == 4
    text = "4 rows were computed at once where memory might not have held all of them"
    assert batches.notes() == [f"{text}; -o rows_at_once=4 does so from the start."]
    batches.estimated(16, lambda count: 8, "there")
    assert batches.notes() == [text.replace("4", "4 to 8", 1) + "."]


def test_what_was_found_out_within_a_finished_stage_or_loop_is_known_when_it_is_read_back() -> None:
    """Also where the calls that follow, or came before, are at the same place."""
    store, seen = Kept(), []
    for most in (2, 100):
        tried: list[int] = []
        context = probekit.Context(store=store)
        batches = Batches(context, Limited())
        batches.joined(8, computed(8, []), "here")
        context.stage("done", lambda batches=batches, most=most: {"x": batches.joined(8, computed(most, []), "here")})
        for _ in range(2):
            batches.joined(8, computed(8, tried), "here")
        again = context.stage("done", dict)  # which takes nothing back
        batches.joined(8, computed(8, tried), "here")
        seen.append((tried, batches.notes(), again["x"].tolist()))
    assert seen[0] == seen[1]
    assert seen[0][0] == [2] * 12


def test_a_step_that_is_repeated_is_computed_in_the_batches_that_it_had() -> None:
    """Memory ran out at the third step; what is repeated of the first two is as it was."""

    store, tried = Kept(), []
    for most in (4, 100):
        context = probekit.Context(store=store)
        batches, rows = Batches(context, Limited()), []
        with context.loop("steps", 4) as loop:
            for step in range(loop.start, 4):
                batches.joined(8, computed(most if step == 2 else 8, rows), "step")
                loop.end_step(dict)
        tried.append(rows)
    assert tried == [[8, 8, 8, 4, 4, 4, 4], [8, 8, 4, 4, 4, 4]]


def test_an_attempt_that_comes_to_nothing_leaves_no_trace() -> None:
    batches = Batches(probekit.Context(), Limited())
    tried = batches.attempt()
    tried.joined(8, computed(2, []), "together")
    assert (tried.halved_to, batches.halved_to) == (2, 0)
    batches.adopt(tried)
    assert batches.halved_to == 2
