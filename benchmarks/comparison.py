"""The same work by every side: checked to come to the same, then timed by turns.

A side that cannot do the work, comes to something else or raises stays in the table, with the reason in place of its
time. The floor and probekit are no peers: where they raise, the benchmark does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.measure import Role, Side, Timings, alternate
from benchmarks.outcome import Comparison, Figure, Outcome, Row
from benchmarks.peers import Absent, NotPossibleError, Peer
from benchmarks.peers.known import quiet, said

# Rounding in fp32 through a dozen blocks, as a part of the largest value.
ROUNDING = 1e-4
EXACT = "bit for bit"
# A goal is for this side; the nearest peer takes at least as long.
OURS, AHEAD = "probekit", 1.0


@dataclass(frozen=True)
class Prepared:
    """A work made ready by one side: what it comes to, and the step that is timed.

    `ended`, where the work goes on from step to step, says where it stands after all of them.
    """

    step: Callable[[], object]
    result: Sequence[torch.Tensor]
    ended: Callable[[], torch.Tensor] | None = None


Prepare = Callable[[Peer], Prepared]


def compare(
    outcome: Outcome,
    work: str,
    peers: Sequence[Peer | Absent],
    prepare: Prepare,
    rounds: int,
    warmup: int,
    goal: float | None = None,
) -> Timings:
    """Check and time the work by every side, and note the table: the first is the floor, `goal` is for probekit.

    Sides whose results are the floor's bit for bit must also end at the same bits. Where there is a goal, the nearest
    peer is a figure of its own: probekit is to be ahead of it. Raises RuntimeError where probekit comes to something
    else.
    """
    floor = peers[0]
    ready: dict[str, Prepared] = {}
    rows: list[Row] = []
    for peer in peers:
        row, prepared = _checked(peer, prepare, ready[floor.title] if ready else None)
        rows.append(row)
        if prepared is not None:
            ready[peer.title] = prepared
        elif row.role != "peer":
            raise RuntimeError(f"{work}: '{row.side}' was not timed: {row.left_out}.")
    roles = {peer.title: peer.role for peer in peers}
    sides = [Side(title, roles[title], prepared.step) for title, prepared in ready.items()]
    timings = alternate(sides, rounds, warmup)
    for place, row in enumerate(rows):
        if row.result == EXACT and not _ended_equal(ready[row.side], ready[floor.title]):
            reason = f"other results: it began like '{floor.title}' and ended elsewhere"
            if row.role != "peer":
                raise RuntimeError(f"{work}: '{row.side}': {reason}.")
            rows[place] = Row(row.side, row.role, left_out=reason, failed=True)
    outcome.failures += [f"{work}: {row.side}: {row.left_out}." for row in rows if row.failed]
    tabulate(outcome, work, rows, timings, goal)
    return timings


def tabulate(outcome: Outcome, work: str, rows: Sequence[Row], timings: Timings, goal: float | None = None) -> None:
    """Note the table of rows without times, the floor's first, and of the times of those that were not left out."""
    floor = rows[0].side
    timed = [_timed(row, timings, floor, goal) for row in rows]
    outcome.comparisons.append(Comparison(work, floor, timed))
    if goal is not None:
        _note_nearest(outcome, work, timed, timings)


def judged(side: str, role: Role, result: Sequence[torch.Tensor], floor: Sequence[torch.Tensor]) -> Row:
    """A row without its times: how near to the floor's its result is, or that it is another and so left out."""
    if [each.shape for each in result] != [each.shape for each in floor]:
        shapes = ", ".join(str(tuple(each.shape)) for each in result)
        return Row(side, role, left_out=f"other results: of the shapes {shapes}", failed=True)
    apart = [_apart(one, other) for one, other in zip(result, floor, strict=True)]
    for each in apart:
        if not each <= ROUNDING:  # not a number neither
            return Row(side, role, left_out=f"other results: {each:.1g} apart", failed=True)
    return Row(side, role, result=f"within {max(apart):.1g}" if any(apart) else EXACT)


def _checked(peer: Peer | Absent, prepare: Prepare, floor: Prepared | None) -> tuple[Row, Prepared | None]:
    """A row without its times, and the work made ready; None where the side is left out."""
    if isinstance(peer, Absent):
        return Row(peer.title, peer.role, left_out=peer.reason, failed=peer.failed), None
    try:
        with quiet():
            prepared = prepare(peer)
            prepared.step()
    except NotPossibleError as reason:
        return Row(peer.title, peer.role, left_out=f"not possible: {reason}"), None
    except Exception as error:
        if peer.role != "peer":
            raise
        return Row(peer.title, peer.role, left_out=f"failed: {said(error)}", failed=True), None
    if floor is None:
        return Row(peer.title, peer.role), prepared
    row = judged(peer.title, peer.role, prepared.result, floor.result)
    return row, None if row.left_out else prepared


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """`max|x − y| / max|y|`; 0 only where they are equal bit for bit."""
    if one.dtype == other.dtype and torch.equal(one, other):
        return 0.0
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def _ended_equal(one: Prepared, other: Prepared) -> bool:
    return one.ended is None or other.ended is None or torch.equal(one.ended(), other.ended())


def _timed(row: Row, timings: Timings, floor: str, goal: float | None) -> Row:
    """The row with its times, if it was timed."""
    if row.left_out:
        return row
    ratio = timings.ratio(row.side, floor)
    return Row(
        row.side,
        row.role,
        row.result,
        ratio.median,
        ratio.low,
        ratio.high,
        timings.median(row.side) * 1e3,
        len(timings.seconds[row.side]),
        goal if row.side == OURS else None,
    )


def _note_nearest(outcome: Outcome, work: str, rows: Sequence[Row], timings: Timings) -> None:
    """The peer that comes nearest, against probekit."""
    peers = [row for row in rows if row.role == "peer" and row.median_ms is not None]
    if not peers:
        return
    nearest = min(peers, key=lambda row: timings.ratio(row.side, OURS).median)
    ratio = timings.ratio(nearest.side, OURS)
    what = f"{work}: {nearest.side}, the nearest peer / {OURS}"
    outcome.figures.append(Figure(what, ratio.median, ratio.low, ratio.high, goal=AHEAD, better="higher"))
