"""A page that several analyses of one run have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probekit.analysis.result import Result
    from probekit.report import Page


@dataclass(frozen=True, eq=False)
class JointReport:
    """Analyses with the same `joint_report` are compared on a page of their own, on top of the report.

    `draw(results, page)` gets the results by the analyses' names, as read back from disk, wherever a run has at least
    two of them; it needs neither a model nor torch.
    """

    title: str
    draw: Callable[[Mapping[str, Result], Page], None]
