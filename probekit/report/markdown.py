"""The summary: title, question, findings, some tables, failures and the command.

As Markdown that also reads well unrendered.
"""

import re
from collections.abc import Mapping
from typing import Any

from probekit.report.characters import plain
from probekit.report.document import Document
from probekit.report.figures import figure

_SPECIAL = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)_|_(?!\w)")
# What would open a heading, a list, a quotation or a rule at the start of a line; of "1." it is the point.
_BLOCK_START = re.compile(r"^(\d*)([#+=~.)-])")


def render_markdown(document: Document) -> str:
    """The text of `summary.md`."""
    parts = [f"# {inline(document.title)}", inline(document.question)]
    parts.append("\n".join(f"- {inline(name)}: {inline(value)}" for name, value in document.facts))
    for name, page in document.pages:
        findings = [inline(finding) for finding in page.findings] or ["No finding was stated; see the report."]
        tables = [_table(block) for block in page.blocks if block.get("in_summary")]
        parts += [f"## {inline(name)}", *findings, *tables]
    if document.failures:
        parts.append("## Failed")
        parts.append("\n".join(f"- **{inline(name)}**: {inline(error)}" for name, error in document.failures))
    if document.command:
        parts += ["## Make it again", _fenced(document.command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(block: Mapping[str, Any]) -> str:
    lines = [[_escaped(name) for name in block["columns"]], ["---"] * len(block["columns"])]
    lines += [[_escaped(figure(cell)) for cell in row] for row in block["rows"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inline(text: str) -> str:
    """One line of text with the characters escaped that Markdown would read as markup."""
    return _BLOCK_START.sub(r"\1\\\2", _escaped(text))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\g<0>", " ".join(plain(text).split()))


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{plain(text)}\n{fence}"
