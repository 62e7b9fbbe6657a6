"""The penalty on what was generated before as CTRL prints it, which transformers does not carry."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


class LiteralPenalty(LogitsProcessor):
    """CTRL's penalty as printed: logits of tokens already generated are divided by θ, negative ones too.

    That makes a token with a negative logit likelier. transformers multiplies those by θ instead.
    """

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self._penalty, self._prompt_length = penalty, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        generated = input_ids[:, self._prompt_length :]
        return scores.scatter(1, generated, scores.gather(1, generated) / self._penalty)
