"""Prompts recovered together: their guesses pass through the model as one batch, and each is mended by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from probekit_plugins.batches import Batches
from probekit_plugins.exact_inverter.proof import Proof
from probekit_plugins.exact_inverter.search import Search
from probekit_plugins.exact_inverter.targets import Target
from probekit_plugins.exact_inverter.tolerance import arithmetic_error
from probekit_plugins.exact_inverter.verdict import Status, Verdict
from probekit_plugins.token_likelihood import TokenLikelihood

if TYPE_CHECKING:
    from probekit import Context, Subject
    from probekit_plugins.exact_inverter import SearchOptions

# Prompts that are searched for together; each group is kept for a run that is resumed.
TOGETHER = 16


@dataclass
class Recovery:
    """What was recovered of one prompt of T tokens."""

    ids: list[int]
    verdicts: list[Verdict]
    tried: list[int]
    by_gradient: list[int]
    computed: int
    reasons: list[str]
    seconds: float  # of the search
    seconds_of_proof: float


class Inverter:
    """One site of a subject: what is learnt of it once, and then any number of prompts recovered.

    `samples` gives the prompts to learn from, when they are first asked for.
    """

    def __init__(
        self,
        subject: Subject,
        site: str,
        samples: Callable[[], Sequence[torch.Tensor]],
        options: SearchOptions,
        context: Context,
        batches: Batches | None = None,
    ) -> None:
        self._subject, self._site, self._samples = subject, site, samples
        self._options, self._context = options, context
        self._batches = batches or Batches(context, options)
        self.seconds = 0.0  # what learning took

    @cached_property
    def likelihood(self) -> TokenLikelihood:
        """How likely each token is given its activation; fitted when it is first asked for."""
        with self._timed():
            return TokenLikelihood(self._subject, self._site, self._samples(), self._batches, self._context)

    @cached_property
    def error(self) -> float:
        """How far an activation of the right tokens may be, relative to its norm, by arithmetic alone."""
        with self._timed():
            measured = arithmetic_error(
                self._subject, self._site, self._samples(), self._batches
            )  # refuses what is not causal
        return self._options.tolerance or measured

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def recover(
        self, targets: Sequence[Target], progress: Callable[[int], None] = lambda tokens: None
    ) -> list[Recovery]:
        """Recover every target. `progress` is told how many tokens more are settled."""
        _ = self.error, self.likelihood
        with torch.no_grad():
            searches, seconds = [], []
            for target in targets:
                start = time.perf_counter()
                searches.append(self._search(target))
                seconds.append(time.perf_counter() - start)
            while active := [number for number, search in enumerate(searches) if not search.done]:
                for together in _by_length(active, searches):
                    start = time.perf_counter()
                    activations = self._captured([searches[number].ids for number in together])
                    share = (time.perf_counter() - start) / len(together)
                    for number, found in zip(together, activations, strict=True):
                        start, before = time.perf_counter(), searches[number].confirmed
                        searches[number].verify(found)
                        seconds[number] += share + time.perf_counter() - start
                        progress(searches[number].confirmed - before)
            return [
                self._proved(target, search, spent)
                for target, search, spent in zip(targets, searches, seconds, strict=True)
            ]

    def _search(self, target: Target) -> Search:
        bound = self._arithmetic(target) + target.blur()
        return Search(self._subject, self._site, target, self.likelihood, bound, self._options, self._batches)

    def _arithmetic(self, target: Target) -> torch.Tensor:
        return self.error * target.norms

    def _captured(self, prompts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Activations of prompts of one length, `[P, T, w]`."""
        ids = torch.stack(list(prompts))

        def of(chosen: slice) -> torch.Tensor:
            return self._subject.capture(ids[chosen], [self._site])[self._site]

        return self._batches.joined(len(ids), of, f"{self._site}/prompts")

    def _proved(self, target: Target, search: Search, seconds: float) -> Recovery:
        start = time.perf_counter()
        rest = (self._arithmetic(target), self._options, self._batches)
        proof = Proof(self._subject, self._site, target, search, *rest)
        verdicts = proof.verdicts()
        return Recovery(
            search.ids.tolist(),
            verdicts,
            search.tried,
            search.by_gradient,
            search.computed,
            _reasons(search, verdicts),
            seconds,
            time.perf_counter() - start,
        )


def _reasons(search: Search, verdicts: Sequence[Verdict]) -> list[str]:
    """Why tokens were not found, less what the proof has settled."""
    return [
        reason
        for position, reason in search.reasons
        if not search.evidence[position] or verdicts[position].status != Status.VERIFIED
    ]


def _by_length(numbers: Sequence[int], searches: Sequence[Search]) -> list[list[int]]:
    """The numbers of searches, in groups of prompts of the same length: together they need no padding."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(len(searches[number].ids), []).append(number)
    return list(groups.values())
