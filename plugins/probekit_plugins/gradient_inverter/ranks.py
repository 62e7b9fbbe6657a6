"""How near the candidates of each rank are to the prompt's tokens, and how frequent they are in a text.

Wrong tokens may still be telling: near the right ones in the embedding, or merely the frequent ones. Beside each
figure stands what uniformly random tokens would have.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import TYPE_CHECKING, Any

from probekit import UsageError

if TYPE_CHECKING:
    import torch

    from probekit import Subject

Scalar = str | int | float | bool | None


def occurrences(subject: Subject, path: str) -> torch.Tensor:
    """How often each token of the vocabulary occurs in a text, `[V]`. Raises UsageError with one sentence for a file
    that cannot be read, or that has no tokens.
    """
    import torch

    from probekit_plugins.texts import ids_of_file

    ids = ids_of_file(subject, path, "frequencies")
    if not ids:
        raise UsageError(f"The text '{path}' has no tokens, so it says nothing of their frequencies.")
    return torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=subject.vocabulary).int()


class Frequencies:
    """How frequent tokens are, by how often each of the vocabulary occurs among the N tokens of a text, `[V]`."""

    def __init__(self, counts: Any) -> None:
        import numpy

        self._seen = counts > 0
        # Half an occurrence is added to every token, so that those of which there are none have a logarithm.
        self._log10 = numpy.log10(1e6 * (counts + 0.5) / (counts.sum(dtype=float) + len(counts) / 2))

    def of(self, ids: Any = ...) -> dict[str, float]:
        """The share of tokens that occur, and the mean log10 of occurrences per million; of the whole vocabulary by
        default, which is the expectation for uniformly random tokens.
        """
        return {"seen": self._seen[ids].mean().item(), "log10_frequency": self._log10[ids].mean().item()}

    def baselines(self, prompts: Iterable[Any]) -> dict[str, float]:
        """The same of random tokens, and the mean over prompts, each an array of ids."""
        of_prompts = [self.of(ids) for ids in prompts]
        random = {f"random_{name}": value for name, value in self.of().items()}
        return random | {f"prompt_{name}": mean(each[name] for each in of_prompts) for name in of_prompts[0]}


class Nearness:
    """How near candidates are to the prompt's tokens, by the cosines between rows of the embedding matrix."""

    def __init__(self, subject: Subject) -> None:
        import torch

        self._matrix = subject.embedding_matrix
        # A row of zeros has no direction; its cosine with any other is 0.
        least = torch.finfo(self._matrix.dtype).tiny
        self._norms = torch.linalg.vector_norm(self._matrix, dim=1).clamp_min(least)

    def cosines(self, ids: torch.Tensor) -> torch.Tensor:
        """Of T tokens with every token of the vocabulary, `[T, V]`."""
        rows = self._matrix[ids] / self._norms[ids, None]
        cosines: torch.Tensor = (rows @ self._matrix.T) / self._norms
        return cosines.clamp(-1, 1)

    def of(self, top_k_ids: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cosine and the percentile of candidates `[R, T, k]` for the prompt's tokens `[T]`, each `[R, T, k]`."""
        import torch

        restarts, length, k = top_k_ids.shape
        cosines = self.cosines(truth)
        found = cosines.gather(1, top_k_ids.permute(1, 0, 2).reshape(length, -1))
        ordered = cosines.sort(1).values
        # Twice the number of tokens that are less near, those that are as near counted half, the candidate among them.
        twice = torch.searchsorted(ordered, found) + torch.searchsorted(ordered, found, right=True)
        percentiles = twice.double() / (2 * cosines.shape[1])
        by_restart = {"cosine": found, "percentile": percentiles}
        return {name: each.view(length, restarts, k).permute(1, 0, 2) for name, each in by_restart.items()}


def rank_rows(
    top_k_ids: Any, truth: Any, cosine: Any, percentile: Any, frequencies: Frequencies | None
) -> list[dict[str, Scalar]]:
    """One row for each restart and rank, of candidates `[R, T, k]` for the prompt's tokens `[T]`: arrays of numpy."""
    restarts, _, k = top_k_ids.shape
    wrong = top_k_ids != truth[:, None]
    rows: list[dict[str, Scalar]] = []
    for restart in range(restarts):
        for rank in range(k):
            at = (restart, slice(None), rank)
            missed = wrong[at]
            rows.append(
                {
                    "restart": restart,
                    "rank": rank,
                    "right": (~missed).mean().item(),
                    "cosine": _mean(cosine[at]),
                    "percentile": _mean(percentile[at]),
                    "cosine_when_wrong": _mean(cosine[at][missed]),
                    "percentile_when_wrong": _mean(percentile[at][missed]),
                    **(frequencies.of(top_k_ids[at]) if frequencies else {"seen": None, "log10_frequency": None}),
                }
            )
    return rows


def _mean(values: Any) -> float | None:
    """The mean, or None of nothing."""
    return values.mean(dtype=float).item() if len(values) else None
