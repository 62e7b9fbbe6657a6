"""Dropout in an inversion: whose masks an evaluation draws, and what is said about the noise that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from probekit import Context


class Masks:
    """`with masks("step 3"): …` draws the masks of that label: the same for the same run's seed, whatever came before.

    A step of a resumed run, and each evaluation of a line search, so gets the masks of its step. torch's generators are
    given back as they were. Without dropout nothing is drawn, and nothing done.
    """

    def __init__(self, context: Context, site: str, dropout: bool) -> None:
        self._context, self._site, self._dropout = context, site, dropout

    @contextmanager
    def __call__(self, label: str) -> Iterator[None]:
        if not self._dropout:
            yield
            return
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self._context.generator(f"masks/{self._site}/{label}").initial_seed())
            yield


def notes_on_dropout(noise: Mapping[str, float | None], without: list[str]) -> list[str]:
    """What a reader has to know: the noise ratio of each site that has noise, and the sites that have none."""
    notes = []
    if noise:
        shown = ", ".join(f"{'?' if ratio is None else f'{ratio:.2g}'} m at {site}" for site, ratio in noise.items())
        notes.append(
            "Dropout was on, as in a freshly constructed model: the target, every step, m and the discrete losses have "
            f"masks of their own; the next token has none. The loss of the prompt's own embeddings is then {shown}: a "
            "descent that ends below that has fitted the masks of the target, not come closer to the prompt."
        )
    if without:
        notes.append(f"The option `dropout` changes nothing at {', '.join(without)}: there is none on the way there.")
    return notes
