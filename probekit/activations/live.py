"""Activations of a live model: each batch is one forward pass, stopped at the deepest site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch

from probekit.activations.batch import ActivationBatch, fits
from probekit.activations.batching import BATCH_BYTES, BATCH_TOKENS, Batching, Mix, Numbered
from probekit.errors import out_of_memory
from probekit.subject import Subject


class LiveActivations:
    """The activations of a subject for prompts of token ids, however many: one batch of them is held at a time."""

    def __init__(
        self,
        subject: Subject,
        prompts: Callable[[], Iterable[Sequence[int]]],
        prompt_count: int,
        batch_tokens: int = BATCH_TOKENS,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """`prompts` gives the token ids of every prompt, each time that it is called. A batch has at most so many
        tokens, padding counted, and about so many bytes in fp32 if every block were captured, or what is captured if
        that is more; one prompt at least.
        """
        self._subject = subject
        self._prompts = prompts
        self._batch_tokens = batch_tokens
        self._batch_bytes = batch_bytes
        self.prompt_count = prompt_count

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._subject.facts

    def expand_sites(self, grammar: str) -> list[str]:
        return self._subject.expand_sites(grammar)

    def batches_of_prompts(self, sites: Sequence[str]) -> Iterator[list[Numbered]]:
        """The numbered prompts that go into one batch for these sites, batch after batch."""
        subject = self._subject
        mix: Mix = "any" if subject.takes_padding(sites) else "one length"
        if any("batch" not in subject.axes(site) for site in sites):
            mix = "one prompt"
        # As for every block, if the sites do not have more: so a batch does not depend on who else shares the pass.
        own = sum(prod(axis for axis in subject.axes(site) if isinstance(axis, int)) for site in sites)
        figures = max(own, subject.width * (len(subject.anatomy.blocks) + 2))
        tokens = min(self._batch_tokens, self._batch_bytes // (4 * figures))
        return Batching(tokens, mix).batches(self._prompts())

    def batches(self, sites: Sequence[str]) -> Iterator[ActivationBatch]:
        for batch in self.batches_of_prompts(sites):
            yield self.batch(batch, sites)

    def batch(self, batch: Sequence[Numbered], sites: Sequence[str]) -> ActivationBatch:
        """The activations of these prompts: one forward pass, or several where memory does not suffice for one."""
        numbers, prompts = zip(*batch, strict=True)
        ids, mask = self._subject.batch(prompts)
        shown = mask.bool()
        activations = self._captured(ids, shown, sites)
        for activation in activations.values():
            if fits(activation, ids) and not bool(shown.all()):
                hidden = ~shown.to(activation.device)
                activation.masked_fill_(hidden.view(*hidden.shape, *[1] * (activation.dim() - 2)), 0)
        ids = ids.masked_fill(~shown, 0).cpu()
        return ActivationBatch(activations, ids, shown.cpu(), torch.tensor(numbers), self._subject.tokens)

    def _captured(self, ids: torch.Tensor, shown: torch.Tensor, sites: Sequence[str]) -> dict[str, torch.Tensor]:
        mask = None if bool(shown.all()) else shown.long()
        try:
            return self._subject.capture(ids, sites, mask)
        except Exception as error:
            if len(ids) == 1 or not out_of_memory(error):
                raise
        half = len(ids) // 2
        parts = [self._captured(ids[rows], shown[rows], sites) for rows in (slice(half), slice(half, None))]
        return {site: torch.cat([part[site] for part in parts]) for site in sites}
