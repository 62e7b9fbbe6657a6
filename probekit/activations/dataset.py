"""The rows of a recording as a torch dataset, for training on activations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from probekit.activations.format import INPUT_IDS, POSITIONS, PROMPTS

if TYPE_CHECKING:
    from probekit.activations.recording import Recording

INDEX_COLUMNS = {"input_id": INPUT_IDS, "prompt": PROMPTS, "position": POSITIONS}


class ActivationDataset(Dataset[dict[str, torch.Tensor]]):
    """Tokens of a recording, in the order in which they were recorded: `dataset[i]` is one token's row.

    A row is `{site: [width], …, "input_id": …, "prompt": …, "position": …}`; a slice, a list of numbers or a tensor of
    them gives all of these with an axis in front. Shards stay on disk, mapped into memory. For a loader of shuffled
    batches, let it ask for whole ones: `DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 4096, False),
    batch_size=None)`.
    """

    def __init__(self, recording: Recording, sites: Sequence[str]) -> None:
        self.recording = recording
        self.sites = list(sites)
        self._ends = list(accumulate(line["tokens"] for line in recording.shards))
        self._mapped: dict[int, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int | slice | Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """Raises IndexError for a number beyond the end, UsageError if a shard is damaged."""
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return self._rows(torch.arange(len(chosen)) * chosen.step + chosen.start)
        try:
            numbers = torch.as_tensor(index, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            numbers = torch.empty(0, 0)
        if numbers.dtype == torch.bool or (numbers.is_floating_point() and numbers.numel()) or numbers.dim() > 1:
            raise TypeError(f"A dataset is indexed by a number, a slice, or a list of numbers; got {index!r}.")
        rows = self._rows(numbers.reshape(-1).long())
        return rows if numbers.dim() else {name: values[0] for name, values in rows.items()}

    def __getstate__(self) -> dict[str, object]:
        """Without what is mapped: each worker of a loader maps the shards itself."""
        return {**vars(self), "_mapped": {}}

    def _rows(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        size = len(self)
        if len(numbers) and not (-size <= int(numbers.min()) and int(numbers.max()) < size):
            raise IndexError(f"The recording has {size} rows; got a number beyond them.")
        numbers = torch.where(numbers < 0, numbers + size, numbers)
        shards = torch.bucketize(numbers, torch.tensor(self._ends), right=True)
        found = {name: self._empty(name, len(numbers)) for name in [*self.sites, *INDEX_COLUMNS]}
        for shard in shards.unique().tolist():
            here = shards == shard
            rows = numbers[here] - (self._ends[shard - 1] if shard else 0)
            for name, tensor in self._shard(shard).items():
                found[name][here] = tensor[rows]
        return found

    def _empty(self, name: str, count: int) -> torch.Tensor:
        if name in INDEX_COLUMNS:
            return torch.empty(count, dtype=torch.long)
        return torch.empty(count, *self.recording.shape(name), dtype=self.recording.dtype(name))

    def _shard(self, number: int) -> dict[str, torch.Tensor]:
        if number not in self._mapped:
            tensors = self.recording.shard(number, [*self.sites, *INDEX_COLUMNS.values()])
            named = {**{site: site for site in self.sites}, **INDEX_COLUMNS}
            self._mapped[number] = {name: tensors[stored] for name, stored in named.items()}
        return self._mapped[number]
