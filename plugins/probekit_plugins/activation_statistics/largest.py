"""The largest figures of any number of activations, with where they stand."""

from __future__ import annotations

import torch


class Largest:
    """The `most` figures of the greatest magnitude; of equal ones those of the earlier prompt, position, dimension.

    Which they are does not depend on what comes in which batch. Zeros are never among them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values = torch.zeros(0, dtype=torch.float64)
        # Dimension, position, prompt and token of each value.
        self._places = torch.zeros(4, 0, dtype=torch.long)

    def add(self, rows: torch.Tensor, positions: torch.Tensor, prompts: torch.Tensor, tokens: torch.Tensor) -> None:
        """Take in rows `[tokens, width]`, and of each row the position, the prompt and the token id `[tokens]`."""
        magnitudes = rows.abs().flatten()
        if not len(magnitudes):
            return
        least = float(magnitudes.topk(min(self._most, len(magnitudes))).values[-1])
        if len(self._values) == self._most:
            least = max(least, float(self._values[-1].abs()))
        found = ((magnitudes >= least) & (magnitudes > 0)).nonzero()[:, 0]
        values = rows.flatten()[found].double().cpu()
        found = found.cpu()
        row = found // rows.shape[1]
        places = torch.stack([found % rows.shape[1], positions[row], prompts[row], tokens[row]])
        self._keep(torch.cat([self._values, values]), torch.cat([self._places, places], 1))

    def _keep(self, values: torch.Tensor, places: torch.Tensor) -> None:
        dimensions, positions, prompts, _ = places
        order = torch.arange(len(values))
        for key in (dimensions, positions, prompts, -values.abs()):  # the last one counts the most
            order = order[key[order].argsort(stable=True)]
        order = order[: self._most]
        self._values, self._places = values[order], places[:, order]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What has been kept, the greatest first: `values` `[n]` with their signs, and `places` `[4, n]`, each one's
        dimension, position, prompt (from 0) and token.
        """
        return {"values": self._values, "places": self._places}
