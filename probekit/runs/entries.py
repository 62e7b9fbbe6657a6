"""What a folder holds, in short: a run, a study, a recording or the page of a comparison, read without their tensors.

What is damaged is an entry too, and says what is wrong with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from probekit.analysis.result import RESULT_FILE
from probekit.errors import UsageError
from probekit.foreign import checked_file
from probekit.runs.directory import RunDirectory
from probekit.runs.studies.page import PAGE_FILE as STUDY_PAGE

RUN_FILE, STUDY_FILE, VERDICTS_FILE, REPORT_FILE = "run.json", "study.json", "verdicts.json", "report.html"
# Of `probekit.activations`, which imports torch.
RECORDING_FILE, RECORDING_INDEX = "recording.json", "index.jsonl"

DAMAGED = "damaged"
UNFINISHED = ("running", "interrupted", "unfinished")

# The beginning of a result has its finding; the tables after it may be large.
HEAD = 1 << 16
_FINDING = re.compile(rb'\{\s*"schema": \d+,\s*"finding": ("(?:[^"\\]|\\.)*")')
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z])")
_DAMAGE = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Entry:
    """One line of a listing.

    `kind` is `run`, `study`, `cell` (a run of a study), `comparison` or `recording`; `status` is that of its files
    (`done`, `failed`, `interrupted`, `running`), `unfinished` for a study or a recording of which a part is missing, or
    `damaged`. `variant` says how the model was loaded where that is not plain: `random weights, int8`. `findings` has
    the first sentence of each analysis's, by its name. `problem` is what went wrong, or what is left to do. `begun` is
    the time in `timings.json`, for a comparison and a recording that of the file; `seconds` the time that was computed.
    """

    kind: str
    path: Path
    status: str
    model: str = ""
    variant: str = ""
    analyses: Sequence[str] = ()
    findings: Mapping[str, str] | None = None
    problem: str = ""
    begun: datetime | None = None
    seconds: float | None = None
    report: Path | None = None
    cells: Sequence[Entry] = ()

    @property
    def finding(self) -> str:
        """The findings in one line, each with its analysis where there are several."""
        found = dict(self.findings or {})
        return (
            " ".join(f"{name}: {text}" for name, text in found.items()) if len(found) > 1 else "".join(found.values())
        )

    @property
    def model_in_words(self) -> str:
        """`gpt2 (random weights, int8)`."""
        return f"{self.model} ({self.variant})" if self.variant else self.model

    def document(self, root: Path) -> dict[str, Any]:
        """The entry as JSON, with its paths below the folder that was listed."""
        return {
            "kind": self.kind,
            "name": name_below(root, self.path),
            "status": self.status,
            "model": self.model,
            "variant": self.variant,
            "analyses": list(self.analyses),
            "findings": dict(self.findings or {}),
            "problem": self.problem,
            "begun": self.begun.isoformat(timespec="seconds") if self.begun else None,
            "seconds": self.seconds,
            "report": None if self.report is None else name_below(root, self.report),
            "cells": len(self.cells),
        }


def name_below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def first_sentence(text: str) -> str:
    """Up to the first full stop that a capital letter follows."""
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


# --- a run -----------------------------------------------------------------------------------------------------------


def run_entry(folder: Path, kind: str = "run") -> Entry:
    """The run in this folder, which has a `run.json`."""
    report = folder / REPORT_FILE
    entry = Entry(kind, folder, DAMAGED, report=report if report.is_file() else None)
    try:
        RunDirectory.open(folder)  # which refuses links
        manifest = _read(folder, RUN_FILE)
        configuration = manifest["configuration"]
        analyses = {str(name): dict(state) for name, state in manifest["analyses"].items()}
        states = analyses | {str(name): dict(state) for name, state in manifest.get("joint", {}).items()}
        status = str(manifest["status"])
        entry = replace(
            entry,
            status=status,
            model=str(configuration["model"]["name"]),
            variant=", ".join(_variant(configuration["model"])),
            analyses=list(analyses),
            problem=" ".join(f"{name}: {state['error']}" for name, state in states.items() if "error" in state),
        )
    except UsageError as error:
        return replace(entry, problem=str(error))
    except _DAMAGE as error:
        return replace(entry, problem=f"The file '{folder / RUN_FILE}' is damaged: {type(error).__name__} {error}.")
    if status in UNFINISHED:
        entry = replace(entry, problem=f"Not finished. {entry.problem}".strip())
    try:
        done = [name for name, state in analyses.items() if state.get("status") == "done"]
        entry = replace(entry, findings={name: _finding(folder, name) for name in done})
        begun, seconds = _times(folder)
        return replace(entry, begun=begun, seconds=seconds)
    except UsageError as error:
        return replace(entry, status=DAMAGED, problem=str(error))


def _variant(model: Mapping[str, Any]) -> Iterator[str]:
    if model.get("weights") == "random":
        yield "random weights"
    if model.get("dtype") not in (None, "auto"):
        yield str(model["dtype"])
    if model.get("quantization") not in (None, "none"):
        yield str(model["quantization"])


def _finding(folder: Path, analysis: str) -> str:
    RunDirectory(folder).analysis(analysis)  # which refuses a name that leads elsewhere
    file = f"analyses/{analysis}/{RESULT_FILE}"
    try:
        with checked_file(folder / file).open("rb") as opened:
            head = opened.read(HEAD)
    except OSError as error:
        raise UsageError(f"The file '{folder / file}' cannot be read: {error.strerror}.") from None
    match = _FINDING.match(head) if len(head) == HEAD else None
    try:
        found = json.loads(match[1]) if match else _read(folder, file)["finding"]
        return first_sentence(found)
    except _DAMAGE as error:
        raise UsageError(f"The file '{folder / file}' is damaged: {type(error).__name__} {error}.") from None


def _times(folder: Path) -> tuple[datetime, float]:
    """When a run was begun, and how long its model and analyses took. Raises UsageError if this is damaged."""
    timings = _read(folder, "timings.json")
    try:
        begun = datetime.fromisoformat(timings["started"]).astimezone()
        parts = [timings.get("load", 0.0), timings.get("activations", 0.0), *timings["analyses"].values()]
        seconds = float(sum(parts))
        if not math.isfinite(seconds):
            raise ValueError("a time is not finite")
    except (*_DAMAGE, OSError) as error:
        raise UsageError(f"The file '{folder / 'timings.json'}' is damaged: {type(error).__name__} {error}.") from None
    return begun, seconds


# --- a study ---------------------------------------------------------------------------------------------------------


def study_entry(folder: Path, cell_folders: Sequence[Path]) -> Entry:
    """The study in this folder, with its cells, which are the runs in these folders."""
    cells = [run_entry(place, "cell") for place in cell_folders]
    report = folder / REPORT_FILE
    begun = [cell.begun for cell in cells if cell.begun]
    entry = Entry(
        "study",
        folder,
        "running",
        model=_listed(cell.model for cell in cells),
        analyses=list(dict.fromkeys(name for cell in cells for name in cell.analyses)),
        begun=min(begun, default=None),
        seconds=sum(cell.seconds for cell in cells if cell.seconds is not None) if begun else None,
        report=report if report.is_file() else None,
        cells=cells,
    )
    try:
        title = str(_read(folder, STUDY_FILE)["title"])
        if not (folder / STUDY_PAGE).is_file():
            return replace(entry, findings={"study": title}, problem="Not finished: it has not been judged yet.")
        page, verdicts = _read(folder, STUDY_PAGE), _read(folder, VERDICTS_FILE)
        texts = [b["text"] for part in page["pages"] for b in part["blocks"] if b["type"] == "finding"]
        counts = page.get("cells", {})
        missing, not_met = int(counts.get("missing", 0)), [name for name, v in verdicts.items() if v["met"] is False]
        failed = int(counts.get("failed", sum(cell.status == "failed" for cell in cells)))
    except UsageError as error:
        return replace(entry, status=DAMAGED, problem=str(error))
    except _DAMAGE as error:
        return replace(entry, status=DAMAGED, problem=f"The study is damaged: {type(error).__name__} {error}.")
    wrong = [f"Not met: {', '.join(not_met)}."] if not_met else []
    wrong += [f"Cells that failed: {failed}."] if failed else []
    return replace(
        entry,
        status="failed" if wrong else "unfinished" if missing else "done",
        findings={"study": " ".join([f"{title.rstrip('.')}.", *map(first_sentence, texts)])},
        problem=" ".join([*wrong, *([f"Not finished: {missing} cells are missing."] if missing else [])]),
    )


# --- a recording -----------------------------------------------------------------------------------------------------


def recording_entry(folder: Path) -> Entry:
    """The recording in this folder, from its manifest and the index of its shards."""
    entry = Entry("recording", folder, DAMAGED)
    try:
        manifest = _read(folder, RECORDING_FILE)
        model, prompts = dict(manifest["origin"].get("model", {})), manifest["prompts"]
        index = checked_file(folder / RECORDING_INDEX)
        *lines, _torn = (index.read_text(encoding="utf-8") if index.is_file() else "").split("\n")
        there, tokens = sum(json.loads(line)["tokens"] for line in lines), int(prompts["tokens"])
        sites = len(manifest["sites"])
        return replace(
            entry,
            status="done" if there == tokens else "unfinished",
            model=str(model.get("name", "")),
            variant=", ".join(_variant(model)),
            findings={
                "recording": f"{int(prompts['count']):,} prompts, {tokens:,} tokens at {sites} "
                f"{'site' if sites == 1 else 'sites'}."
            },
            problem="" if there == tokens else f"Not finished: {there:,} of {tokens:,} tokens are there.",
            begun=_date_of(folder / RECORDING_FILE),
        )
    except UsageError as error:
        return replace(entry, problem=str(error))
    except (*_DAMAGE, OSError, RecursionError) as error:
        return replace(entry, problem=f"The recording is damaged: {type(error).__name__} {error}.")


# --- a comparison ----------------------------------------------------------------------------------------------------


class Opening(NamedTuple):
    """How a page that probekit drew begins: its title, the facts at its top, its first finding."""

    title: str
    facts: dict[str, str]
    finding: str


def comparison_entry(file: Path) -> Entry | None:
    """The comparison whose page this is; None for any other file."""
    if not (title_of(file) or "").startswith("Comparison"):
        return None
    try:
        opening = _opening(file)
        begun = _date_of(file)
    except OSError as error:
        return Entry("comparison", file, DAMAGED, problem=f"The page cannot be read: {error.strerror}.")
    analyses = opening.facts.get("Analyses", opening.facts.get("Analysis", ""))
    return Entry(
        "comparison",
        file,
        "done",
        model=opening.facts.get("Model", ""),
        analyses=[name for name in analyses.split(", ") if name],
        findings={"comparison": first_sentence(opening.finding) or opening.title},
        begun=begun,
        report=file,
    )


def title_of(file: Path) -> str | None:
    """The title of a page that probekit drew; None for any other file, and one that cannot be read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD).decode(errors="replace")
    except OSError:
        return None
    policy = head.find('http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;')
    return _Reader(head).opening.title if 0 <= policy < head.find("</title>") else None


def _opening(file: Path) -> Opening:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return _Reader(opened.read(8 * HEAD)).opening


class _Reader(HTMLParser):
    """Reads the opening of a page: its title, its `dl.facts` and its first `p.finding`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._into: list[str] | None = None
        self._texts: dict[str, list[list[str]]] = {"title": [], "dt": [], "dd": [], "p": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._texts and (tag != "p" or (dict(attrs).get("class") or "").split()[:1] == ["finding"]):
            self._into = []
            self._texts[tag].append(self._into)

    def handle_endtag(self, tag: str) -> None:
        self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into.append(data)

    @property
    def opening(self) -> Opening:
        found = {tag: ["".join(pieces).strip() for pieces in texts] for tag, texts in self._texts.items()}
        facts = dict(reversed(list(zip(found["dt"], found["dd"], strict=False))))  # the first of a name is the header's
        return Opening("".join(found["title"][:1]), facts, "".join(found["p"][:1]))


# --- files -----------------------------------------------------------------------------------------------------------


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file. Raises UsageError with a sentence if it is missing, unreadable or damaged."""
    try:
        document: dict[str, Any] = RunDirectory(folder).read_json(name)
    except OSError as error:
        raise UsageError(f"The file '{folder / name}' cannot be read: {error.strerror}.") from None
    return document


def _date_of(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime).astimezone()


def _listed(names: Iterator[str]) -> str:
    return ", ".join(name for name in dict.fromkeys(names) if name)
