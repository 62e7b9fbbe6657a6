"""One analysis of a run: its result saved, and drawn from what was saved."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from probekit.analysis import Result
from probekit.errors import AnalysisError, ProbekitError, described, out_of_memory
from probekit.report import Page
from probekit.runs.directory import RunDirectory

if TYPE_CHECKING:
    from probekit.analysis import Analysis, Options


# How the note begins that tells of what an analysis printed.
PRINTED = "While it computed, the analysis printed"
KEPT = "kept in the run's events.jsonl."
PRINTED_NOTE = re.compile(rf"{PRINTED} (a line|\d+ lines), {re.escape(KEPT)}")


def save(name: str, options: Options, result: object, directory: RunDirectory) -> Result:
    """Save the result of an analysis with its options, and give it back as it was read from disk.

    Raises AnalysisError if it is no result, or holds a figure that is not finite.
    """
    folder = f"analyses/{name}"
    if not isinstance(result, Result):
        raise AnalysisError(f"The analysis returned a {type(result).__name__}; expected a probekit.Result.")
    directory.write_json(f"{folder}/options.json", options.model_dump(mode="json"))
    for file, content in result.encode().items():
        directory.write(f"{folder}/{file}", content)
    directory.write_seconds(name, result.seconds)
    return directory.result(name)


def draw(analysis: Analysis[Any], saved: Result) -> Page:
    """The page of a saved result: its finding, and what the analysis draws."""
    page = Page(analysis.name)
    if saved.finding:
        page.finding(saved.finding)
    analysis.report(saved, page)
    return page


def finish_page(page: Page, saved: Result, lines_printed: int, directory: RunDirectory) -> None:
    """Add the notes of a result to its page and save it: with this, the analysis is done."""
    for note in saved.notes:
        page.note(note)
    if lines_printed:
        lines = "a line" if lines_printed == 1 else f"{lines_printed} lines"
        page.note(f"{PRINTED} {lines}, {KEPT}")
    directory.write_json(f"analyses/{page.title}/page.json", page.to_json())
    directory.write(f"analyses/{page.title}/DONE", b"")


OUT_OF_MEMORY = (
    "Out of memory. Fewer restarts (-o restarts=…), a shorter prompt, an earlier site, or a smaller precision "
    "(--dtype bfloat16, --quantization int8) needs less."
)


def explain(error: BaseException) -> str:
    """One sentence for what ended an analysis."""
    if isinstance(error, ProbekitError) or not out_of_memory(error):
        return described(error)
    return OUT_OF_MEMORY
