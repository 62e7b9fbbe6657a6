"""How near the candidates of each rank are to the prompt's tokens, and how frequent they are in a text.

Wrong tokens may still be telling: near the right ones in the embedding, or merely the frequent ones. Beside each
figure stands what uniformly random tokens would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

import torch

from probekit import UsageError
from probekit_plugins.texts import ids_of_file

if TYPE_CHECKING:
    from probekit import Prompt, Subject

Scalar = str | int | float | bool | None


class Frequencies:
    """How often each token of the vocabulary occurs among the N tokens of a text."""

    def __init__(self, ids: Sequence[int], vocabulary: int) -> None:
        counts = torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=vocabulary).double()
        self._seen = (counts > 0).double()
        # Half an occurrence is added to every token, so that those of which there are none have a logarithm.
        self._log10 = torch.log10(1e6 * (counts + 0.5) / (counts.sum() + vocabulary / 2))

    @classmethod
    def of_file(cls, subject: Subject, path: str) -> Frequencies:
        """Raises UsageError with one sentence for a file that cannot be read, or that has no tokens."""
        ids = ids_of_file(subject, path, "frequencies")
        if not ids:
            raise UsageError(f"The text '{path}' has no tokens, so it says nothing of their frequencies.")
        return cls(ids, subject.vocabulary)

    def of(self, ids: torch.Tensor | None = None) -> dict[str, float]:
        """The share of tokens that occur, and the mean log10 of occurrences per million; of the whole vocabulary by
        default, which is the expectation for uniformly random tokens.
        """
        chosen = slice(None) if ids is None else ids.cpu()
        return {"seen": float(self._seen[chosen].mean()), "log10_frequency": float(self._log10[chosen].mean())}

    def baselines(self, prompts: Sequence[Prompt]) -> dict[str, float]:
        """The same of random tokens, and the mean over prompts."""
        of_prompts = [self.of(prompt.input_ids[0]) for prompt in prompts]
        random = {f"random_{name}": value for name, value in self.of().items()}
        return random | {f"prompt_{name}": mean(each[name] for each in of_prompts) for name in of_prompts[0]}


class Ranks:
    """Figures of the candidates of each rank, by the cosines between rows of the embedding matrix."""

    def __init__(self, subject: Subject, frequencies: Frequencies | None) -> None:
        self._matrix = subject.embedding_matrix
        # A row of zeros has no direction; its cosine with any other is 0.
        least = torch.finfo(self._matrix.dtype).tiny
        self._norms = torch.linalg.vector_norm(self._matrix, dim=1).clamp_min(least)
        self._frequencies = frequencies

    def cosines(self, ids: torch.Tensor) -> torch.Tensor:
        """Of T tokens with every token of the vocabulary, `[T, V]`."""
        rows = self._matrix[ids] / self._norms[ids, None]
        cosines: torch.Tensor = (rows @ self._matrix.T) / self._norms
        return cosines.clamp(-1, 1)

    def rows(self, top_k_ids: torch.Tensor, truth: torch.Tensor) -> list[dict[str, Scalar]]:
        """One row for each restart and rank, of candidates `[R, T, k]` for the prompt's tokens `[T]`."""
        restarts, length, k = top_k_ids.shape
        cosines = self.cosines(truth)
        candidates = top_k_ids.permute(1, 0, 2).reshape(length, -1)
        found = cosines.gather(1, candidates)
        ordered = cosines.sort(1).values
        # Twice the number of tokens that are less near, those that are as near counted half, the candidate among them.
        twice = torch.searchsorted(ordered, found) + torch.searchsorted(ordered, found, right=True)
        percentiles = twice.double() / (2 * cosines.shape[1])
        wrong = candidates != truth[:, None]
        rows: list[dict[str, Scalar]] = []
        for restart in range(restarts):
            for rank in range(k):
                at = restart * k + rank
                rows.append(
                    {
                        "restart": restart,
                        "rank": rank,
                        "right": float((~wrong[:, at]).double().mean()),
                        "cosine": _mean(found[:, at]),
                        "percentile": _mean(percentiles[:, at]),
                        "cosine_when_wrong": _mean(found[wrong[:, at], at]),
                        "percentile_when_wrong": _mean(percentiles[wrong[:, at], at]),
                        **self._frequencies_of(candidates[:, at]),
                    }
                )
        return rows

    def _frequencies_of(self, ids: torch.Tensor) -> dict[str, Scalar]:
        if self._frequencies is None:
            return {"seen": None, "log10_frequency": None}
        return {**self._frequencies.of(ids)}


def _mean(values: torch.Tensor) -> float | None:
    """The mean, or None of nothing."""
    return float(values.double().mean()) if len(values) else None
