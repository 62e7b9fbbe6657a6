"""`--engine local`: one cell after another in this process."""

from __future__ import annotations

from probekit.runs.studies.work import Work, carry_out_cell
from probekit.runs.subjects import Subjects


class Local:
    """Cells one after another; those that name the same model one after another share it."""

    def carry_out(self, work: Work) -> None:
        """Raises KeyboardInterrupt when the cell that was interrupted is saved."""
        subjects = Subjects()
        for cell in work.cells:
            if not work.waits(cell):
                continue
            work.listener.message(f"{work.name(cell)}: {cell.label}")
            sentence = carry_out_cell(
                work.folder, cell, work.plugins, work.listener, work.seconds_between_saves, subjects
            )
            if sentence:
                work.listener.message(f"Failed: {sentence}")
