"""Labels of examples, and how well clusters of codes agree with them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from probekit import UsageError

if TYPE_CHECKING:
    from probekit_plugins.examples import Examples

COLUMNS = {"token": 0, "position": 1, "document": 2}
# Clusters are scored on the most frequent labels that have so many examples, and on so many examples.
MOST_LABELS = 20
LEAST_EXAMPLES = 8
MOST_EXAMPLES = 4000


class Labels:
    """A label for each example, from what is known of it or from a file with a line for each document."""

    def __init__(self, labels: str, documents: int) -> None:
        self._names: list[str] | None = None
        self._column = COLUMNS.get(labels, COLUMNS["document"])
        if labels in COLUMNS:
            return
        try:
            lines = Path(labels).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise UsageError(
                f"The labels '{labels}' are none of {', '.join(COLUMNS)}, and no file that can be read: "
                f"{error.strerror}."
            ) from None
        except UnicodeDecodeError:
            raise UsageError(f"The file of labels '{labels}' is not UTF-8.") from None
        if len(lines) != documents:
            raise UsageError(
                f"The file of labels '{labels}' has {len(lines)} lines for {documents} prompts; expected one for each."
            )
        self._names = sorted(set(lines))
        number = {name: index for index, name in enumerate(self._names)}
        self._of_documents = torch.tensor([number[line] for line in lines])

    def of(self, about: torch.Tensor) -> torch.Tensor:
        """The label of each example, `[n]`."""
        found = about[:, self._column]
        return found if self._names is None else self._of_documents[found]

    def text(self, label: int, examples: Examples) -> str:
        """How a label is shown."""
        if self._names is not None:
            return self._names[label]
        return examples.token_texts([label])[0] if self._column == COLUMNS["token"] else str(label)


def frequent(labels: torch.Tensor) -> torch.Tensor:
    """Which examples are of the most frequent labels, at most so many: their numbers."""
    values, counts = labels.unique(return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_LABELS]
    chosen = values[order][counts[order] >= LEAST_EXAMPLES]
    return torch.isin(labels, chosen).nonzero()[:MOST_EXAMPLES, 0]


def clusters(codes: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor | None:
    """The k-means cluster of each code `[n, q]`, as many clusters as labels `[n]`. None with fewer than two labels."""
    kinds = len(labels.unique())
    if kinds < 2:
        return None
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer different codes than clusters
        found = KMeans(kinds, n_init=4, random_state=seed % 2**32).fit_predict(codes.double().numpy())
    return torch.from_numpy(found)


def agreement(clusters: torch.Tensor, labels: torch.Tensor) -> float:
    """Adjusted mutual information of clusters with labels, `[n]` each: 1 if they are the same, 0 as by chance.

    Vinh, Epps and Bailey, 2010.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels.numpy(), clusters.numpy()))
