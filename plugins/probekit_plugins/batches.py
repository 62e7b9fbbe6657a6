"""Rows of a batch in as few parts as memory allows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from probekit import out_of_memory

if TYPE_CHECKING:
    from probekit import Context, Options, Subject

Part = TypeVar("Part")
Fitting = Callable[[int], int]
"""How many of so many rows fit at once: an estimate, as by `probekit.rows_that_fit`."""


class Batches:
    """Independent rows: all at once, or so many as the options say or an estimate finds room for, and half as many
    whenever memory runs out.

    What was halved once stays so for the batches that follow. Where memory ran out, and what an estimate chose, is kept
    for a run that is resumed, so that it goes on in the same batches: what they are by then goes with every stage and
    loop of the context.
    """

    def __init__(self, context: Context, options: Options | None = None, purpose: str = "") -> None:
        """The option is `rows_at_once`, where there is one; `purpose` tells batches apart whose rows cost otherwise."""
        self._context, self._carried = context, context.carried
        self._name = f"rows at once/{purpose}"
        self._has_option = hasattr(options, "rows_at_once")
        self._option: int | None = getattr(options, "rows_at_once", None)
        self._chosen: dict[str, int] = {}  # where an estimate chose fewer than all
        with torch.enable_grad():
            self._leaf = torch.zeros((), requires_grad=True)
            self._early = self._leaf * 1

    def parts(self, count: int, compute: Callable[[slice], Part], where: str, most: int | None = None) -> list[Part]:
        """`compute` of slices that cover `count` rows, `most` at once; `where` names the batch within the analysis.

        `compute` is called for the same rows again if memory runs out. What it was at then is set free before.
        """
        self._remember(self._call + 1, self.halved_to)
        # By its number a call is known from others at the same place, such as those of another step.
        place = f"{where}/call {self._call}"
        before = dict(self._carried.values)
        rows = max(1, min(self._at_once or count, most or count, count))
        while True:
            key = f"out of memory/{place}/{rows} rows"
            if rows == 1 or not self.is_known(key):
                try:
                    return [compute(slice(first, min(first + rows, count))) for first in range(0, count, rows)]
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    self._forget_pending()
                    if rows == 1:
                        error.add_note(f"at {where}, with one row at once")
                        raise
                # Only here: until the exception is gone, its traceback holds the tensors of what failed.
                clear_device_cache(garbage_collection=True)
                self._carried.values = dict(before)  # a resumed run knows nothing of what came to nothing
                self._context.stage(key, lambda: {"rows": torch.tensor(rows)})  # noqa: B023
            rows = -(-rows // 2)
            self.limit(rows)
            self._context.log(f"Out of memory at {where}; going on with {rows} rows at once.")

    def joined(
        self, count: int, compute: Callable[[slice], torch.Tensor], where: str, most: int | None = None
    ) -> torch.Tensor:
        """The same for one tensor, joined along its first dimension."""
        return torch.cat(self.parts(count, compute, where, most))

    def estimated(self, count: int, fitting: Fitting, where: str) -> int:
        """`most` for the parts of `count` rows: what `fitting` says, or said before the run was resumed; all where the
        options say how many.
        """
        if count == 1 or self._option is not None:
            return count
        found = self._context.stage(f"rows at once/{where}", lambda: {"rows": torch.tensor(fitting(count))})
        rows = min(count, max(1, int(found["rows"])))
        if rows < count:
            self._chosen[where] = rows
            self._context.log(f"{count} rows may not fit into memory at {where}; computing {rows} at once.")
        return rows

    def attempt(self) -> Batches:
        """The same, for work that may come to nothing: what it finds out about memory counts once it is adopted."""
        other = copy.copy(self)
        other._chosen = dict(self._chosen)
        other._carried = copy.copy(self._carried)
        other._carried.values = dict(self._carried.values)
        return other

    def adopt(self, other: Batches) -> None:
        """Take over what an attempt has found out."""
        self._remember(other._call, other.halved_to)
        self._chosen = other._chosen

    def _forget_pending(self) -> None:
        """Have autograd forget what a backward pass that failed had still to do: on the CPU its queue keeps that, and
        with it the graph, until it comes to a node that is older; and that is `early`.
        """
        torch.autograd.grad(self._early, self._leaf, retain_graph=True)

    def is_known(self, key: str) -> bool:
        """Whether a stage of this key was saved, in a run that is resumed."""

        def unknown() -> dict[str, torch.Tensor]:
            raise LookupError

        try:
            self._context.stage(key, unknown)
        except LookupError:
            return False
        return True

    def _remember(self, call: int, halved_to: int) -> None:
        self._carried.values[self._name] = torch.tensor([call, halved_to])

    @property
    def _call(self) -> int:
        """How many times parts were asked for."""
        return int(self._carried.values[self._name][0]) if self._name in self._carried.values else 0

    @property
    def halved_to(self) -> int:
        """So many rows at once after memory ran out; 0 if it never did."""
        return int(self._carried.values[self._name][1]) if self._name in self._carried.values else 0

    @property
    def _at_once(self) -> int | None:
        """Most rows at once, as the options say and as memory was found to hold."""
        bounds = [rows for rows in (self._option, self.halved_to) if rows]
        return min(bounds) if bounds else None

    def limit(self, rows: int) -> None:
        """Never more rows at once from now on, because memory ran out; nothing for 0."""
        if rows:
            self._remember(self._call, min(rows, self._at_once or rows))

    def notes(self) -> list[str]:
        """What a reader has to know of how many rows were computed at once."""
        if self.halved_to:
            rows = f"{self._at_once}"
            begin = f"Memory ran out, so that in the end {rows} rows were computed at once"
        elif self._chosen:
            least, most = min(self._chosen.values()), max(self._chosen.values())
            rows = f"{least}" if least == most else f"{least} to {most}"
            begin = f"{rows} rows were computed at once where memory might not have held all of them"
        else:
            return []
        repeats = self._has_option and "to" not in rows
        return [f"{begin}{f'; -o rows_at_once={rows} does so from the start' if repeats else ''}."]


def without_padding(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`[B, T, w]`, zero where the mask `[B, T, 1]` is. Values at other positions than the prompts', as those of patches
    of tokens, are left as they are: models that have them are given no padding.
    """
    return values * mask.to(values) if values.shape[1] == mask.shape[1] else values


def notes_on_rows(subject: Subject) -> list[str]:
    """What a reader has to know of rows that were computed as one batch."""
    if getattr(subject.model, "is_loaded_in_8bit", False):
        return ["int8: rows of one batch influence each other slightly, through shared outlier columns."]
    return []
