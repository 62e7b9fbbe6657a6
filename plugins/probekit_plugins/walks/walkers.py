"""Walkers: where walks start, as one batch of independent rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from probekit import rows_that_fit
from probekit_plugins.batches import Batches, without_padding
from probekit_plugins.precision import at_least_single

if TYPE_CHECKING:
    from probekit import Context, LayerMap, Prompt, Subject


class Walkers:
    """P prompts × K walkers = B rows of up to T positions, at one site: `e*`, the target `t = O_l(e*)`, the layer map.

    Shorter prompts are padded on the right, and the padding is masked; no distance, loss or step has a share of it.
    """

    def __init__(
        self,
        subject: Subject,
        prompts: Sequence[Prompt],
        site: str,
        count: int,
        context: Context,
        batches: Batches | None = None,
    ) -> None:
        """Raises AnalysisError if the embeddings or the activation of a prompt are not finite."""
        lengths = [len(prompt.tokens) for prompt in prompts]
        ids, padding = subject.batch([prompt.input_ids for prompt in prompts])
        self.subject, self.site = subject, site
        self._context = context
        self._rows = [(prompt, walker) for prompt in range(len(prompts)) for walker in range(count)]
        self.lengths = [lengths[prompt] for prompt, _ in self._rows]
        self._ids = ids.repeat_interleave(count, 0)
        embeddings = subject.embed(ids)
        subject.check_finite(embeddings, "The token embedding")
        embeddings = at_least_single(embeddings)
        self.embeddings = embeddings.repeat_interleave(count, 0)
        self._padding = None if bool(padding.all()) else padding.repeat_interleave(count, 0)

        def target_of(chosen: slice) -> torch.Tensor:
            with torch.no_grad():
                return self._map_of(ids[chosen], None if self._padding is None else padding[chosen])(embeddings[chosen])

        batches = batches or Batches(context)

        def fitting(count: int) -> int:
            return rows_that_fit(subject, site, ids.shape[1], count)

        most = batches.estimated(len(prompts), fitting, f"{site}/target")
        target = batches.joined(len(prompts), target_of, f"{site}/target", most)
        subject.check_finite(target, f"The activation at {site}")
        self.target = target.repeat_interleave(count, 0)
        self.layer_map = self._map_of(self._ids, self._padding)
        inside = torch.arange(ids.shape[1])[None] < torch.tensor(self.lengths)[:, None]
        self.mask = inside[..., None].to(embeddings)

    def _find_map(self) -> None:
        """One layer map for all rows; where blocks read the token ids again, or prompts are padded, the rows' own."""
        if self.subject.reads_ids(self.site) or self._padding is not None:
            self.layer_map = self._map_of(self._ids, self._padding)

    def _map_of(self, ids: torch.Tensor, padding: torch.Tensor | None) -> LayerMap:
        beside = ids if self.subject.reads_ids(self.site) else None
        return self.subject.layer_map(self.site, input_ids=beside, attention_mask=padding)

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, chosen: slice) -> Walkers:
        """Some of the rows."""
        part = copy.copy(self)
        for name in ("_rows", "lengths", "_ids", "embeddings", "target", "mask"):
            setattr(part, name, getattr(self, name)[chosen])
        part._padding = None if self._padding is None else self._padding[chosen]
        part._find_map()
        return part

    def displacement(self, activation: torch.Tensor) -> torch.Tensor:
        """`O − t`, zero at padding."""
        return without_padding(activation - self.target, self.mask)

    def loss(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`‖O_l(e) − t‖₁` for each row, `[B]`."""
        return self.displacement(self.layer_map(embeddings)).abs().sum((1, 2))

    def summed_gradient(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`g = ∇_e Σ O_l(e)`, `[B, T, d]`; the sum leaves out padding."""
        leaf = embeddings.detach().requires_grad_()
        with torch.enable_grad():
            total = without_padding(self.layer_map(leaf), self.mask).sum()
        gradient: torch.Tensor
        (gradient,) = torch.autograd.grad(total, leaf)
        return gradient

    def generators(self, purpose: str) -> Iterator[torch.Generator]:
        """A generator for each row: the same for a walker whatever stands beside it in the batch."""
        for prompt, walker in self._rows:
            yield self._context.generator(f"{self.site}/{prompt}/{walker}/{purpose}")

    def noise(self, generators: Iterator[torch.Generator]) -> torch.Tensor:
        """Standard normal noise `[B, T, d]`, zero at padding."""
        drawn = torch.zeros(self.embeddings.shape, dtype=self.embeddings.dtype)
        for row, length, generator in zip(drawn, self.lengths, generators, strict=True):
            row[:length] = torch.randn(length, row.shape[1], generator=generator, dtype=row.dtype)
        return drawn.to(self.embeddings.device)


def norms(difference: torch.Tensor, order: int) -> torch.Tensor:
    """L1 or L2 norm of each row, `[B, T, d]` → `[B]`, summed in float64."""
    flat = difference.flatten(1).double()
    found: torch.Tensor = torch.linalg.vector_norm(flat, ord=order, dim=1)
    return found
