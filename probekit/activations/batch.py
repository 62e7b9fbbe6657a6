"""One batch of activations, and what gives them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from probekit.errors import UsageError


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """The activations of a few prompts: `batch["block.3"]` is `[batch, sequence, width]`, zero where there is padding.

    `input_ids` and `mask` are `[batch, sequence]`; the mask is True at a prompt's own tokens, which stand on the left.
    `prompts` `[batch]` are the prompts' numbers in the order in which they were given, from 0.
    """

    activations: Mapping[str, torch.Tensor]
    input_ids: torch.Tensor
    mask: torch.Tensor
    prompts: torch.Tensor
    token_texts: Callable[[Sequence[int]], list[str]]

    @property
    def sites(self) -> list[str]:
        """The sites that are there, in the order in which they were asked for."""
        return list(self.activations)

    def __getitem__(self, site: str) -> torch.Tensor:
        """The activation at a site, `[batch, sequence, width]`.

        Raises UsageError if it was not asked for, or if there is not a vector for each token.
        """
        if site not in self.activations:
            raise UsageError(f"The batch has no site '{site}'; it has: {', '.join(self.sites)}.")
        activation = self.activations[site]
        if not fits(activation, self.input_ids):
            raise UsageError(
                f"The site '{site}' returns {list(activation.shape)} for prompts {list(self.input_ids.shape)}; choose "
                "one with a vector for each token, [batch, sequence, width], such as a block."
            )
        return activation

    def rows(self, site: str) -> torch.Tensor:
        """The activations of the prompts' own tokens at a site, prompt after prompt: `[tokens, width]`."""
        activation = self[site]
        return activation[self.mask.to(activation.device)]

    @property
    def positions(self) -> torch.Tensor:
        """The position of each row within its prompt: `[tokens]`."""
        return self.mask.nonzero()[:, 1]

    @property
    def row_prompts(self) -> torch.Tensor:
        """The number of the prompt that each row is of: `[tokens]`."""
        return self.prompts[self.mask.nonzero()[:, 0]]

    @property
    def row_ids(self) -> torch.Tensor:
        """The token id of each row: `[tokens]`."""
        return self.input_ids[self.mask]

    def tokens(self) -> list[list[str]]:
        """The texts of each prompt's tokens, without the padding."""
        rows = zip(self.input_ids, self.mask, strict=True)
        return [self.token_texts(ids[mask].tolist()) for ids, mask in rows]

    def only(self, sites: Sequence[str]) -> ActivationBatch:
        """The same batch with copies of these sites alone: who gets it may write into them."""
        copies = {site: self[site].clone() for site in sites}
        index = (self.input_ids.clone(), self.mask.clone(), self.prompts.clone())
        return ActivationBatch(copies, *index, self.token_texts)


def fits(activation: torch.Tensor, input_ids: torch.Tensor) -> bool:
    """Whether there is a vector, or more than one, for each token."""
    return activation.dim() > 2 and activation.shape[:2] == input_ids.shape


class ActivationSource(Protocol):
    """Where activations come from: a live model, or a recording."""

    @property
    def prompt_count(self) -> int:
        """How many prompts there are."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of the model, as in a run's manifest."""
        ...

    def expand_sites(self, grammar: str) -> list[str]:
        """The sites that an expression stands for. Raises UsageError, listing what there is, for one that is not
        there.
        """
        ...

    def batches(self, sites: Sequence[str]) -> Iterator[ActivationBatch]:
        """All prompts once, with their activations at these sites."""
        ...
