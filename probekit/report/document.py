"""The report around the pages: what was asked, by whom it was answered, and how to make it again."""

from collections.abc import Sequence
from dataclasses import dataclass

from probekit.report.blocks import Page


@dataclass(frozen=True)
class Document:
    """Everything that one report shows, as plain data.

    `facts` are the few things a reader wants at the top (model, device, prompts); `pages` pairs each analysis's name
    with its page; `failures` pairs the name of an analysis that failed with the sentence that says why; `command`
    makes the report again; `provenance` is the rest: versions, seeds, hashes.
    """

    title: str
    question: str
    facts: Sequence[tuple[str, str]] = ()
    pages: Sequence[tuple[str, Page]] = ()
    failures: Sequence[tuple[str, str]] = ()
    command: str = ""
    provenance: Sequence[tuple[str, str]] = ()
