"""The harness: who goes when, what is kept, and what a ratio is. Time is a fake clock's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import pairwise, permutations

import pytest

from benchmarks.measure import Ratio, Side, Timings, alternate, order, percentile


class World:
    """A clock that stands still but for the work that is done, and a diary of who did it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.diary: list[str] = []

    def side(self, name: str, seconds: Callable[[], float]) -> Side:
        def step() -> None:
            self.diary.append(name)
            self.now += seconds()

        return Side(name, "peer", step)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def world() -> Iterator[World]:
    yield World()
    assert gc.isenabled()


def rounds_of(diary: list[str], count: int) -> list[str]:
    return ["".join(diary[start : start + count]) for start in range(0, len(diary), count)]


def test_sides_take_turns_in_every_round(world: World) -> None:
    sides = [world.side(name, lambda: 1.0) for name in "ABC"]
    alternate(sides, rounds=7, warmup=0, clock=world.clock)
    assert rounds_of(world.diary, 3) == ["ABC", "BCA", "CAB", "CBA", "ACB", "BAC", "ABC"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_side_has_every_place_equally_often(count: int) -> None:
    turns = [order(count, turn) for turn in range(2 * count)]
    assert all(sorted(turn) == list(range(count)) for turn in turns)
    for place in range(count):
        assert sorted(turn[place] for turn in turns) == sorted(2 * list(range(count)))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_no_side_always_follows_the_same_one(count: int) -> None:
    turns = [order(count, turn) for turn in range(2 * count)]
    followed = {pair for turn in turns for pair in pairwise(turn)}
    assert all(
        (one, other) in followed for one, other in permutations(range(count), 2) if abs(one - other) in (1, count - 1)
    )


def test_the_rounds_of_the_warmup_are_done_but_not_kept(world: World) -> None:
    cold = iter([50.0, 50.0, 1.0, 2.0, 3.0])
    timings = alternate([world.side("A", lambda: next(cold))], rounds=3, warmup=2, clock=world.clock)
    assert timings.seconds == {"A": [1.0, 2.0, 3.0]}
    assert len(world.diary) == 5


def test_what_happens_between_the_sides_is_nobodys_time(world: World) -> None:
    def clock() -> float:
        world.now += 0.25  # reading the clock takes time as well: once within each measurement
        return world.now

    timings = alternate([world.side("A", lambda: 1.0), world.side("B", lambda: 2.0)], 4, 0, clock)
    assert timings.seconds == {"A": [1.25] * 4, "B": [2.25] * 4}


def test_a_slow_spell_of_the_machine_changes_no_ratio(world: World) -> None:
    def pace() -> int:
        return 1 + (len(world.diary) - 1) // 2  # slower from round to round

    sides = [world.side("A", lambda: 2 * pace()), world.side("B", pace)]
    timings = alternate(sides, rounds=20, warmup=0, clock=world.clock)
    assert max(timings.seconds["A"]) == 20 * min(timings.seconds["A"])
    assert timings.ratio("A", "B") == Ratio(2.0, 2.0, 2.0)
    assert timings.ratio("B", "A") == Ratio(0.5, 0.5, 0.5)


def test_a_ratio_is_taken_pair_by_pair() -> None:
    timings = Timings({"A": [1.0, 20.0, 3.0], "B": [1.0, 10.0, 1.0]})
    assert timings.ratio("A", "B") == Ratio(2.0, pytest.approx(1.2), pytest.approx(2.8))
    assert timings.median("A") / timings.median("B") == 3.0  # which is not what is reported


def test_percentiles_are_those_of_numpy() -> None:
    import numpy

    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    for percent in (0, 10, 37.5, 50, 90, 100):
        assert percentile(values, percent) == pytest.approx(float(numpy.percentile(values, percent)))
    assert percentile([7.0], 90) == 7.0


def test_nothing_is_collected_while_a_side_is_timed(world: World) -> None:
    seen: list[bool] = []
    side = Side("A", "peer", lambda: seen.append(gc.isenabled()))
    alternate([side], rounds=2, warmup=1)
    assert seen == [False, False, False]


def test_a_side_that_fails_ends_the_run_and_collection_is_on_again(world: World) -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        alternate([Side("A", "peer", fail)], rounds=1, warmup=0)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_collection_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        alternate([Side("A", "peer", lambda: None)], rounds=1, warmup=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_no_rounds_and_two_sides_of_one_name_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match=r"rounds is 0; expected at least 1\."):
        alternate([world.side("A", lambda: 1.0)], rounds=0, warmup=0)
    with pytest.raises(ValueError, match=r"Two sides share a name: A, A\."):
        alternate([world.side("A", lambda: 1.0)] * 2, rounds=1, warmup=0)
