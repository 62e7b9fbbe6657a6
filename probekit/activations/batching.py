"""Which prompts go into one batch: little padding, bounded memory, and the same batches each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

BATCH_TOKENS = 2048
BATCH_BYTES = 128 * 2**20
# So many prompts are looked at together, and sorted by their length.
WINDOW = 1024

Mix = Literal["any", "one length", "one prompt"]
Numbered = tuple[int, Sequence[int]]


@dataclass(frozen=True)
class Batching:
    """Batches of at most `tokens` tokens, padding counted, of one prompt at least.

    `mix` is what the model takes in one batch: prompts of any lengths, of one length, or one prompt.
    """

    tokens: int = BATCH_TOKENS
    mix: Mix = "any"

    def batches(self, prompts: Iterable[Sequence[int]]) -> Iterator[list[Numbered]]:
        """Numbered prompts in batches, each window of them sorted by length. Holds one window, however many there are.

        What is in which batch depends on the lengths of the prompts alone, window by window.
        """
        numbered = enumerate(prompts)
        while window := list(islice(numbered, WINDOW)):
            window.sort(key=lambda prompt: len(prompt[1]))
            batch: list[Numbered] = []
            for prompt in window:
                if batch and not self._fits(prompt, batch):
                    yield batch
                    batch = []
                batch.append(prompt)
            yield batch

    def _fits(self, prompt: Numbered, batch: list[Numbered]) -> bool:
        length = len(prompt[1])  # the longest of them, since they are sorted
        if self.mix == "one prompt" or (self.mix == "one length" and length != len(batch[0][1])):
            return False
        return length * (len(batch) + 1) <= self.tokens
