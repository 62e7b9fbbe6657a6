"""The summary: title, question, findings, failures and the command, as Markdown that also reads well unrendered."""

import re

from probekit.report.characters import plain
from probekit.report.document import Document

_SPECIAL = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)_|_(?!\w)")
# What would open a heading, a list, a quotation or a rule at the start of a line; of "1." it is the point.
_BLOCK_START = re.compile(r"^(\d*)([#+=~.)-])")


def render_markdown(document: Document) -> str:
    """The text of `summary.md`."""
    parts = [f"# {_inline(document.title)}", _inline(document.question)]
    parts.append("\n".join(f"- {_inline(name)}: {_inline(value)}" for name, value in document.facts))
    for name, page in document.pages:
        findings = [_inline(finding) for finding in page.findings] or ["No finding was stated; see the report."]
        parts += [f"## {_inline(name)}", *findings]
    if document.failures:
        parts.append("## Failed")
        parts.append("\n".join(f"- **{_inline(name)}**: {_inline(error)}" for name, error in document.failures))
    if document.command:
        parts += ["## Make it again", _fenced(document.command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inline(text: str) -> str:
    """One line of text with the characters escaped that Markdown would read as markup."""
    line = _SPECIAL.sub(r"\\\g<0>", " ".join(plain(text).split()))
    return _BLOCK_START.sub(r"\1\\\2", line)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{plain(text)}\n{fence}"
