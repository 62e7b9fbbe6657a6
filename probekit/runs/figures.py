"""The charts of a run or a study as files for a paper, from what it saved: no model, no torch, no plugin."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from probekit.errors import UsageError
from probekit.files import write_whole
from probekit.report import FIGURE_FORMATS, Figure, Page, draw_figures
from probekit.report.markdown import inline
from probekit.runs.directory import RunDirectory
from probekit.runs.render import read_pages
from probekit.runs.studies.page import PAGE_FILE

FORMATS = FIGURE_FORMATS
CAPTIONS = "captions.md"


def save_figures(path: Path, folder: Path, formats: Sequence[str]) -> list[Figure]:
    """Write each chart of the run or study at `path` into `folder`, in these formats (`svg`, `png`, `csv`), and
    `captions.md`, which says what each shows.

    Raises UsageError with a sentence if there is no run or study, it has no chart, one cannot be drawn, or a file
    exists already or cannot be written; then no file is written that was not whole.
    """
    try:
        drawn = list(draw_figures(_pages(path), formats))
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    if not drawn:
        raise UsageError(f"There is no chart with a finite figure in '{path}', so there is nothing to save.")
    files = {f"{figure.name}{ending}": content for figure in drawn for ending, content in figure.files.items()}
    files[CAPTIONS] = _captions(drawn).encode(errors="replace")
    for name in files:
        if os.path.lexists(folder / name):
            raise UsageError(f"The file '{folder / name}' exists; name another folder for the figures, or remove it.")
    try:
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise UsageError(f"The figures cannot be written to '{folder}': {error.strerror}.") from None
    return drawn


def _pages(path: Path) -> list[tuple[str, Page]]:
    if (path / "run.json").is_file() or not (path / PAGE_FILE).is_file():
        directory = RunDirectory.open(path)
        return read_pages(directory, directory.read_json("run.json"))
    pages = RunDirectory(path).read_json(PAGE_FILE).get("pages")
    try:
        return [(page.title, page) for page in map(Page.from_json, pages or [])]
    except (TypeError, ValueError) as error:
        raise UsageError(f"The file '{path / PAGE_FILE}' is damaged: {error}") from None


def _captions(drawn: Sequence[Figure]) -> str:
    parts = [
        f"## {figure.name}\n\n{inline(figure.caption) or 'No caption.'}\n\n{inline(figure.description)}\n"
        for figure in drawn
    ]
    return "# Figures\n\n" + "\n".join(parts)
