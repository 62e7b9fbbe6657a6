"""Everything that was run below a folder, newest first: as data, and as one page with links to the reports."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekit.errors import UsageError
from probekit.files import write_whole
from probekit.report import Document, Page, render_html, render_markdown
from probekit.report.characters import one_line
from probekit.runs.entries import (
    DAMAGED,
    RECORDING_FILE,
    RUN_FILE,
    STUDY_FILE,
    UNFINISHED,
    VERDICTS_FILE,
    Entry,
    comparison_entry,
    name_below,
    recording_entry,
    run_entry,
    study_entry,
    title_of,
)
from probekit.runs.execute import DEFAULT_FOLDER

TITLE = "Runs in"
SUMMARY_FILE = "summary.md"
TEXT = "finding, or what went wrong"
COLUMNS = ["name", "status", TEXT, "begun", "analyses", "model", "kind", "seconds"]
# Characters on the page: a run of four analyses has as many sentences, and its report is a click away.
MOST_OF_A_FINDING = 280
HEADINGS = {"seconds": "took"}  # for a terminal, which has them in words
_PLURALS = {"run": "runs", "study": "studies", "cell": "cells", "comparison": "comparisons", "recording": "recordings"}


@dataclass(frozen=True)
class Index:
    """What was found below `folder`, newest first, and the folders below it that could not be read, each with why."""

    folder: Path
    entries: list[Entry]
    unreadable: list[str]

    @property
    def summary(self) -> str:
        """`14 runs, 2 studies, 1 comparison; 1 failed.`"""
        kinds = Counter(entry.kind for entry in self.entries)
        if not kinds:
            return f"There are no runs, studies, comparisons or recordings below '{self.folder}'."
        statuses = Counter(entry.status for entry in self.entries)
        found = [f"{kinds[one]:,} {one if kinds[one] == 1 else many}" for one, many in _PLURALS.items() if kinds[one]]
        unfinished = sum(statuses[status] for status in UNFINISHED)
        wrong = {"failed": statuses["failed"], "unfinished": unfinished, DAMAGED: statuses[DAMAGED]}
        said = ", ".join(f"{count:,} {what}" for what, count in wrong.items() if count)
        return f"{', '.join(found)}{f'; {said}' if said else ''}."

    def row(self, entry: Entry) -> list[str | float | None]:
        """What a table says of an entry, column by column."""
        return [
            name_below(self.folder, entry.path),
            entry.status,
            " ".join(filter(None, [entry.problem, entry.finding])),
            f"{entry.begun:%Y-%m-%d %H:%M}" if entry.begun else None,
            ", ".join(entry.analyses),
            entry.model_in_words,
            entry.kind,
            None if entry.seconds is None else round(entry.seconds, 1),
        ]

    def texts(self, entry: Entry) -> dict[str, str]:
        """The same for a terminal: each a line of visible characters, by its column."""
        row = dict(zip(COLUMNS, self.row(entry), strict=True))
        row["seconds"] = "" if entry.seconds is None else in_words(entry.seconds)
        return {HEADINGS.get(column, column): one_line(str(value or "")) for column, value in row.items()}

    def document(self) -> dict[str, Any]:
        """The JSON document that `probekit runs --json` prints."""
        return {
            "folder": str(self.folder),
            "summary": self.summary,
            "entries": [entry.document(self.folder) for entry in self.entries],
            "unreadable": self.unreadable,
        }


def index_runs(folder: str | Path | None = None, cells: bool = False) -> Index:
    """List the runs, studies, comparisons and recordings below a folder, by default that in which `probekit run` makes
    them. A study's runs are listed only with `cells`.

    What is damaged is listed with what is wrong; hidden folders are left out. Tensors are not read. Raises UsageError
    if there is no such folder.
    """
    root = DEFAULT_FOLDER if folder is None else Path(folder)
    if not root.is_dir():
        hint = "name the folder that holds your runs" if folder is None else "name the folder that holds runs"
        raise UsageError(f"There is no folder '{root}'; {hint}, or make one with `probekit run`.")
    unreadable: list[str] = []
    found = list(_entries(root, unreadable))
    if cells:
        found += [cell for entry in found for cell in entry.cells]
    # Stable: without a date last, and of one date by name.
    found.sort(key=lambda entry: name_below(root, entry.path))
    found.sort(key=lambda entry: entry.begun.timestamp() if entry.begun else float("-inf"), reverse=True)
    return Index(root, found, unreadable)


def _entries(root: Path, unreadable: list[str]) -> Iterator[Entry]:
    for folder, files, folders in _folders(root, unreadable):
        if RUN_FILE in files:
            yield run_entry(folder)
        elif STUDY_FILE in files and ("cells" in folders or VERDICTS_FILE in files):
            yield study_entry(folder, _cells(folder))
        elif RECORDING_FILE in files:
            yield recording_entry(folder)
        else:
            pages = (comparison_entry(folder / name) for name in files if name.endswith(".html"))
            yield from (entry for entry in pages if entry)
            continue
        folders.clear()  # what such a folder holds is its own


def _folders(root: Path, unreadable: list[str]) -> Iterator[tuple[Path, set[str], set[str]]]:
    """Each folder once, with the names of its files and of the folders in it, which the caller may take out to keep
    from going there. Links come after all else: what is there under two names is listed under its own, and a loop ends.
    """
    waiting, links, seen = [root], list[Path](), set[tuple[int, int]]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop()
        files, folders, linked = set[str](), set[str](), set[str]()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as found:
                for item in found:
                    if _is(item.is_file):
                        files.add(item.name)
                    elif _is(item.is_dir) and not item.name.startswith("."):
                        folders.add(item.name)
                        linked |= {item.name} if item.is_symlink() else set()
        except OSError as error:
            if folder == root:
                raise UsageError(f"The folder '{root}' cannot be read: {error.strerror}.") from None
            unreadable.append(f"The folder '{folder}' cannot be read: {error.strerror}.")
            continue
        yield folder, files, folders
        waiting += [folder / name for name in folders - linked]
        links += [folder / name for name in folders & linked]


def _cells(study: Path) -> list[Path]:
    """The runs of a study; what keeps them from being read is seen where the study's report is."""
    try:
        return sorted(file.parent for file in (study / "cells").glob(f"*/{RUN_FILE}") if file.is_file())
    except OSError:
        return []


def _is(test: Callable[[], bool]) -> bool:
    """What a file is; one that cannot be asked, such as a link to itself, is nothing."""
    try:
        return test()
    except OSError:
        return False


def in_words(seconds: float) -> str:
    """`12.3 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


# --- the page --------------------------------------------------------------------------------------------------------


def write_index(index: Index, output: str | Path) -> Path:
    """Write an index as one self-contained page with a link to each report, in place of an earlier one.

    Raises UsageError if the page would not be in the folder that it lists or in one above it, since its links lead
    down; if there is another file of its name; or if it cannot be written.
    """
    path = Path(output)
    if _is(path.is_dir):
        raise UsageError(f"The output '{path}' is a folder; name a file in it, such as '{path / 'index.html'}'.")
    home, folder = _whole(path.parent), _whole(index.folder)
    if not folder.is_relative_to(home):
        raise UsageError(
            f"The output '{path}' is not beside the runs: its links lead down to their reports, so write it to "
            f"'{index.folder / 'index.html'}', or into a folder above."
        )
    if os.path.lexists(path) and not (title_of(path) or "").startswith(TITLE):
        raise UsageError(f"The output '{path}' exists and is no index of runs; name another file, or remove it.")
    _write(path, render_html(_document(index, folder.relative_to(home), ["--output", str(path)])))
    return path


def write_summary(index: Index, output: str | Path) -> Path:
    """Write an index as Markdown, with the summary of each report that has one below it, in place of an earlier one.

    Raises UsageError if there is another file of its name, or if it cannot be written.
    """
    path = Path(output)
    opening = f"# {TITLE} "
    if _is(path.is_dir):
        raise UsageError(f"The summary '{path}' is a folder; name a file in it, such as '{path / SUMMARY_FILE}'.")
    if os.path.lexists(path) and not _begins_with(path, opening.encode()):
        raise UsageError(f"The summary '{path}' exists and is none of runs; name another file, or remove it.")
    parts = [render_markdown(_document(index, Path(), ["--summary", str(path)]))]
    for entry in index.entries:
        summary = None if entry.report is None else entry.report.with_name(SUMMARY_FILE)
        if summary is not None and entry.path.is_dir() and summary.is_file():
            try:
                parts.append(summary.read_text(encoding="utf-8", errors="replace"))
            except OSError as error:
                raise UsageError(f"The file '{summary}' cannot be read: {error.strerror}.") from None
    _write(path, "\n---\n\n".join(parts))
    return path


def _begins_with(path: Path, opening: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(opening)) == opening
    except OSError:  # such as a link to nothing
        return False


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode(errors="replace"))
    except OSError as error:
        raise UsageError(f"The output '{path}' cannot be written: {error.strerror}.") from None


def _document(index: Index, below: Path, written: list[str]) -> Document:
    """The page; `below` is the way from it to the folder that it lists, `written` the option that wrote it."""
    name = _whole(index.folder).name or str(index.folder)
    page = Page("What was run")
    page.finding(index.summary)
    targets = [
        None if entry.report is None else _safe(below / entry.report.relative_to(index.folder))
        for entry in index.entries
    ]
    if index.entries:
        rows = [dict(zip(COLUMNS, index.row(entry), strict=True)) for entry in index.entries]
        for row, entry in zip(rows, index.entries, strict=True):
            row["analyses"] = ",\n".join(entry.analyses)  # below each other, which leaves the finding its width
            row[TEXT] = textwrap.shorten(str(row[TEXT]), MOST_OF_A_FINDING, placeholder=" …")
        page.table(
            COLUMNS,
            [list(row.values()) for row in rows],
            caption="The newest first; a name leads to its report",
            in_summary=True,
            interactive=True,
            targets=targets,
        )
    for sentence in index.unreadable:
        page.note(sentence)
    cells = ["--cells"] if any(entry.kind == "cell" for entry in index.entries) else []
    return Document(
        title=f"{TITLE} {name}",
        question="What was run here, and what was found?",
        pages=[(page.title, page)],
        command=shlex.join(["probekit", "runs", str(index.folder), *cells, *written]),
    )


def _whole(path: Path) -> Path:
    """The path from the root without `..`, links as they are named: the page's links go the same way."""
    return Path(os.path.normpath(path.absolute()))


def _safe(report: Path) -> str | None:
    """The target of a link, or None where a page refuses it: one with a `#` or a `%`, say, would lead elsewhere."""
    target = report.as_posix()
    try:
        Page("").links([("", target)])
    except ValueError:
        return None
    return target
