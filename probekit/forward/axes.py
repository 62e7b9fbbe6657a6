"""Axes: which axis of what a module returns is the batch, which the sequence, and what the others are.

Most blocks return `[batch, sequence, width]`. Some carry several streams (`[batch, sequence, 4, width]`, `[4, batch,
sequence, width]`, `[batch, 3 × sequence, width]`), some have the sequence in front, some put positions of their own
before the prompt's. Not assumed but measured: the model is run on one prompt and on two, on four tokens and on two, and
what grows with what says which axis it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Axes:
    """The axes of what a module returns, in its own order: `('batch', 'sequence', 32)`, `(4, 'batch', 'sequence', 32)`.

    A number is the size of an axis that depends on neither. `batch` and `sequence` are where those axes stand, or None
    where one is not found: the activation is then what the module returns. The batch axis has `rows` for a prompt. The
    sequence axis holds `streams` sequences one after another, or positions of which the prompt's begin at `start`.
    """

    names: tuple[str | int, ...] = ("batch", "sequence", "width")
    batch: int | None = 0
    sequence: int | None = 1
    rows: int = 1
    streams: int = 1
    start: int = 0

    @property
    def in_order(self) -> bool:
        """Whether what the module returns is `[batch, sequence, width]` as it is."""
        return (len(self.names), self.batch, self.sequence, self.rows, self.streams, self.start) == (3, 0, 1, 1, 1, 0)

    def fit(self, returned: torch.Tensor, length: int | None = None) -> bool:
        """Whether what the module returned has these axes, with room for prompts of that length."""
        if self.batch is None or self.sequence is None:
            return True
        if returned.dim() != len(self.names):
            return False
        long = returned.shape[self.sequence]
        return length is None or long // self.streams >= self.start + length

    def arrange(self, returned: torch.Tensor, length: int | None = None) -> torch.Tensor:
        """What the module returned as `[batch, sequence, width]`, with streams and a prompt's rows in the width.

        With the prompt's `length`, positions that the model has filled up behind it are left out.
        """
        if self.batch is None or (self.in_order and length in (None, returned.shape[1])):
            return returned
        end = None if length is None else self.start + length
        parts = self._in_front(returned)[:, self.start : end]
        return parts.flatten(2) if parts.dim() > 3 else parts

    def restore(self, activation: torch.Tensor, returned: torch.Tensor) -> torch.Tensor:
        """What the module returned, with an activation `[batch, sequence, width]` in its place."""
        if self.batch is None or (self.in_order and activation.shape == returned.shape):
            return activation
        assert self.sequence is not None
        parts = self._in_front(returned)
        own = activation.reshape(*activation.shape[:2], *parts.shape[2:])
        end = self.start + own.shape[1]
        if own.shape[1] < parts.shape[1]:
            own = torch.cat([parts[:, : self.start], own, parts[:, end:]], 1)
        if self.streams > 1:
            own = own.movedim(2, 1).flatten(1, 2)
        if self.rows > 1:
            own = own.movedim(2, 1).flatten(0, 1)
        return own.movedim((0, 1), (self.batch, self.sequence))

    def _in_front(self, returned: torch.Tensor) -> torch.Tensor:
        """`[batch, sequence, …]`, streams and rows behind."""
        assert self.batch is not None
        assert self.sequence is not None
        parts = returned.movedim((self.batch, self.sequence), (0, 1))
        if self.rows > 1:
            parts = parts.unflatten(0, (-1, self.rows)).movedim(1, 2)
        if self.streams > 1:
            parts = parts.unflatten(1, (self.streams, -1)).movedim(1, 2)
        return parts


# Of a module whose axes are not known: its activation is what it returns.
AS_RETURNED = Axes(("as returned",), None, None)


def compare_shapes(shapes: Mapping[tuple[int, int], Sequence[int]]) -> Axes:
    """The axes that these shapes show, by the number of prompts and of tokens that they were seen for.

    The first is for one prompt, one more for two prompts, and, unless the model takes one length only, one for another
    number of tokens. Positions that are not the prompt's are taken to be in front (`start`).
    """
    (prompts, tokens), first = next(iter(shapes.items()))
    if any(len(shape) != len(first) for shape in shapes.values()):
        return AS_RETURNED
    names: list[str | int] = list(first)
    batch, sequence = [], []
    rows = streams = 1
    start = 0
    in_turn = True  # the rows of each prompt, one prompt after another
    for (other_prompts, other_tokens), other in shapes.items():
        for axis in (axis for axis, size in enumerate(first) if other[axis] != size):
            more = other[axis] - first[axis]
            if other_prompts != prompts:
                rows = more // (other_prompts - prompts)
                in_turn = rows >= 1 and first[axis] == rows * prompts and other[axis] == rows * other_prompts
                batch.append(axis)
                names[axis] = "batch" if rows == 1 else f"{rows} × batch"
            elif axis in batch:
                names[axis] = "batch × sequence"
                batch.remove(axis)
            else:
                streams, rest = divmod(more, other_tokens - tokens)
                start = first[axis] - streams * tokens
                if rest or streams < 1 or start < 0:
                    return Axes(tuple(names), None, None)
                sequence.append(axis)
                names[axis] = "sequence" if streams == 1 else f"{streams} × sequence"
                names[axis] = f"{start} + {names[axis]}" if start else names[axis]
    if len(shapes) == 2:  # one length only
        sequence = [axis for axis, size in enumerate(first[:-1]) if size == tokens and axis not in batch]
        for axis in sequence if len(sequence) == 1 else []:
            names[axis] = "sequence"
    if len(batch) != 1 or len(sequence) != 1 or "batch × sequence" in names or (streams > 1 and start) or not in_turn:
        return Axes(tuple(names), None, None)
    return Axes(tuple(names), batch[0], sequence[0], rows, streams, start)
