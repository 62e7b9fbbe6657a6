"""A comparison: what a side comes to is checked before it is timed, and who is left out stays in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.comparison import Prepared, compare
from benchmarks.measure import Role
from benchmarks.outcome import Comparison, Outcome, Row
from benchmarks.peers import Absent, NotPossibleError, Peer


@dataclass
class Fake:
    """A side that comes to a value, and counts its steps; or raises."""

    title: str
    role: Role
    value: float = 1.0
    end: float = 0.0
    error: Exception | None = None
    steps: list[int] = field(default_factory=list)

    def layer_map(self, blocks: int) -> Any:
        raise NotImplementedError

    def capture(self, blocks: Sequence[int]) -> Any:
        raise NotImplementedError


def prepare(peer: Peer) -> Prepared:
    assert isinstance(peer, Fake)
    if peer.error is not None:
        raise peer.error
    print("noise of a peer")
    result = [torch.ones(2), torch.tensor([2.0, peer.value])]
    return Prepared(lambda: peer.steps.append(1), result, lambda: torch.tensor(peer.end))


def compared(*more: Peer | Absent, goal: float | None = None) -> tuple[Outcome, Comparison]:
    outcome = Outcome("")
    compare(outcome, "work", [Fake("floor", "floor"), Fake("probekit", "probekit"), *more], prepare, 3, 1, goal)
    [comparison] = outcome.comparisons
    return outcome, comparison


def row_of(comparison: Comparison, side: str) -> Row:
    return next(row for row in comparison.rows if row.side == side)


def test_every_side_has_a_row_in_the_order_in_which_they_came(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Fake("peer", "peer")
    _, comparison = compared(Absent("absent", "not there"), peer)
    assert [row.side for row in comparison.rows] == ["floor", "probekit", "absent", "peer"]
    assert len(peer.steps) == 1 + 1 + 3  # once to see that it works, then the warm-up and the rounds
    assert row_of(comparison, "peer").rounds == 3
    assert row_of(comparison, "peer").result == "bit for bit"
    assert capsys.readouterr().out == ""


def test_a_result_within_rounding_is_timed_and_says_how_near_it_is() -> None:
    _, comparison = compared(Fake("near", "peer", value=1.0 + 2e-6, end=5.0))
    row = row_of(comparison, "near")
    assert row.result == "within 1e-06"
    assert row.value is not None


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (Fake("peer", "peer", value=1.1), "other results: 0.05 apart"),
        (Fake("peer", "peer", value=float("nan")), "other results: nan apart"),
        (Fake("peer", "peer", end=1.0), "other results: it began like 'floor' and ended elsewhere"),
        (Fake("peer", "peer", error=RuntimeError("no\nmore")), "failed: RuntimeError: no"),
    ],
    ids=["something else", "not a number", "ends elsewhere", "raises"],
)
def test_a_peer_that_does_something_else_or_raises_is_not_timed_and_is_a_failure(peer: Fake, why: str) -> None:
    outcome, comparison = compared(peer, goal=1e9)
    row = row_of(comparison, "peer")
    assert (row.left_out, row.value) == (why, None)
    assert outcome.failures == [f"work: peer: {why}."]
    assert why in comparison.markdown()
    assert outcome.figures == []  # no peer is the nearest


def test_what_a_peer_cannot_do_is_said_and_is_no_failure() -> None:
    outcome, comparison = compared(Fake("peer", "peer", error=NotPossibleError("it has no gradient")))
    assert row_of(comparison, "peer").left_out == "not possible: it has no gradient"
    assert outcome.failures == []


def test_probekit_must_come_to_the_same_and_end_at_the_same() -> None:
    floor = Fake("floor", "floor")
    with pytest.raises(RuntimeError, match=r"'probekit' was not timed: other results: 0\.5 apart"):
        compare(Outcome(""), "work", [floor, Fake("probekit", "probekit", value=2.0)], prepare, 1, 0)
    with pytest.raises(RuntimeError, match="'probekit': other results: it began like 'floor' and ended elsewhere"):
        compare(Outcome(""), "work", [floor, Fake("probekit", "probekit", end=1.0)], prepare, 1, 0)
    with pytest.raises(KeyError):
        compare(Outcome(""), "work", [floor, Fake("probekit", "probekit", error=KeyError("ours"))], prepare, 1, 0)


def test_the_goal_is_for_probekit_and_it_is_to_be_ahead_of_the_nearest_peer() -> None:
    outcome, comparison = compared(Fake("one", "peer"), Fake("other", "peer"), goal=1e9)
    assert {row.side: row.goal for row in comparison.rows if row.goal is not None} == {"probekit": 1e9}
    assert row_of(comparison, "probekit").met is True
    [nearest] = outcome.figures
    assert nearest.what in {f"work: {peer}, the nearest peer / probekit" for peer in ("one", "other")}
    assert (nearest.goal, nearest.better) == (1.0, "higher")
