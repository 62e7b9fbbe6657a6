"""A prompt as an analysis gets it: text where there was one, token ids, and each token's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prompt:
    """`input_ids` is `[1, sequence]`, on the device where ids enter the model; `tokens` are the texts of its tokens."""

    text: str
    input_ids: torch.Tensor
    tokens: list[str]

    def copy(self) -> Prompt:
        """The same prompt, with ids of its own."""
        return Prompt(self.text, self.input_ids.clone(), list(self.tokens))
