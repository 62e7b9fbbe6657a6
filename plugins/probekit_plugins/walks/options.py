"""Options that every walk has. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import probekit

if TYPE_CHECKING:
    from probekit import Page, Result

# The names of the tracks that are controls.
CONTROLS = ("random", "shifts alone")


class WalkOptions(probekit.Options):
    """Where walks start, how many there are, and what is recorded of them."""

    sites: probekit.Sites = Field(
        "block.-1", description="Sites whose activation should stay as it is, each walked on its own."
    )
    steps: int = Field(50, ge=1, description="N, the number of steps.")
    walkers: int = Field(4, ge=1, description="Walks from each prompt, with random numbers of their own, as one batch.")
    record_every: int | None = Field(
        None, ge=1, description="Measure and decode at every so many steps; unset: about 20 times."
    )
    control: bool = Field(True, description="Also walk with random steps of the same kind, as a control.")
    noise_draws: int = Field(
        4, ge=1, description="Gaussian displacements of the same length that r is compared with, for each walker."
    )
    decoder: Literal["pseudo-inverse", "nearest", "cosine", "unembedding"] = Field(
        "nearest", description="How embeddings are decoded to tokens; the source page's is pseudo-inverse."
    )
    top_k: int = Field(5, ge=1, description="Rows of candidate tokens to keep for each position.")
    rows_at_once: int | None = Field(
        None, ge=1, description="Prompts × walkers in one batch; unset: all, halved while memory runs out."
    )

    @property
    def recorded_steps(self) -> list[int]:
        """The steps before which the embeddings are measured, and N after the last."""
        every = self.record_every or -(-self.steps // 20)
        return [*range(0, self.steps, every), self.steps]


def _side_by_side(results: Mapping[str, Result], page: Page) -> None:
    from probekit_plugins.walks.comparison import draw

    draw(results, page)


SIDE_BY_SIDE = probekit.JointReport("Walks side by side", _side_by_side)
