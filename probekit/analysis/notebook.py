"""What a notebook shows of a result: its page, in a frame that keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probekit.analysis.result import Result, Scalar

# What is shown of each table, of each group of sequences, and of a sequence.
MOST_ROWS = 10
MOST_TENSORS = 6
MOST_TOKENS = 100
# Of the finding, where the result is one line.
MOST_CHARACTERS = 100


def framed(html: str, title: str, height: int = 640) -> str:
    """A page as part of a notebook: in a frame whose scripts reach nothing outside it, and that a reader can make
    higher by its lower edge.
    """
    # The report brings its own policy, which allows its own scripts by their hash; the sandbox gives it an origin of
    # its own, so that whatever slipped through could neither read the notebook nor call its server. The base, before
    # that policy, is for links within the page: without it they would lead to the notebook.
    html = html.replace("<head>", '<head><base href="about:srcdoc">', 1)
    return (
        f'<div style="height: {height}px; min-height: 120px; resize: vertical; overflow: hidden; '
        'padding-bottom: 14px; box-sizing: border-box">'
        f'<iframe title="{escaped(title)}" sandbox="allow-scripts allow-downloads" srcdoc="{escaped(html)}" '
        'style="width: 100%; height: 100%; border: 0; display: block"></iframe></div>'
    )


def escaped(text: str) -> str:
    """Text for HTML, in an element or an attribute; what no file can hold, such as half a surrogate pair, as `?`."""
    return escape(text.encode(errors="replace").decode())


def drawn(result: Result) -> str:
    """A result as a page without charts: its finding, notes and metrics, and the beginnings of everything else."""
    from probekit.report import Document, Page, Token, TokenRow, render_html

    page = Page("What was found")
    if result.finding:
        page.finding(result.finding)
    for note in result.notes:
        page.note(note)
    if result.metrics:
        rows = [[name, _cell(value)] for name, value in result.metrics.items()]
        page.table(["metric", "value"], rows, caption="Metrics")
    for name, table in result.tables.items():
        columns = columns_of(table)
        rows = [[_cell(row.get(column)) for column in columns] for row in table[:MOST_ROWS]]
        page.table(columns, rows, caption=_first(name, "row", len(table)))
    for name, group in result.sequences.items():
        lines = [
            TokenRow(
                ", ".join(f"{key} {value}" for key, value in sequence.labels.items()),
                [Token(text) for text in sequence.tokens[:MOST_TOKENS]],
                f"{len(sequence.tokens):,} tokens in all" if len(sequence.tokens) > MOST_TOKENS else "",
            )
            for sequence in group[:MOST_ROWS]
        ]
        page.tokens(lines, caption=_first(name, "sequence", len(group)), align=False)
    if result.tensors:
        tensors = [[name, *_shape(tensor)] for name, tensor in result.tensors.items()]
        page.table(["tensor", "shape", "dtype"], tensors, caption="Tensors")
    return render_html(
        Document(
            title="Result",
            question="",
            pages=[(page.title, page)],
            provenance=[("Shown here", f"all metrics; of a table or a group of sequences the first {MOST_ROWS}")],
        )
    )


def columns_of(table: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """The columns of a table's rows, in the order in which they first appear."""
    return list(dict.fromkeys(column for row in table for column in row))


def described(result: Result) -> str:
    """A result in one line, without its values."""
    parts = [repr(shorten(result.finding, MOST_CHARACTERS, placeholder=" …"))] if result.finding else []
    parts += [f"metrics: {len(result.metrics):,}"] if result.metrics else []
    parts += [f"rows of {name}: {len(rows):,}" for name, rows in result.tables.items()]
    parts += [f"sequences {name}: {len(group):,}" for name, group in result.sequences.items()]
    tensors = [f"tensor {name}: {' '.join(_shape(tensor))}" for name, tensor in result.tensors.items()]
    more = len(tensors) - MOST_TENSORS
    parts += tensors if more <= 0 else [*tensors[:MOST_TENSORS], f"{more:,} more tensors"]
    return f"Result({'; '.join(parts)})"


def _first(name: str, what: str, count: int) -> str:
    if count > MOST_ROWS:
        return f"{name}: the first {MOST_ROWS} of {count:,} {what}s"
    return f"{name}: {count} {what}{'' if count == 1 else 's'}"


def _shape(tensor: Any) -> tuple[str, str]:
    """`[3, 64]` and `float32`, of a torch tensor or a numpy array."""
    shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", type(tensor).__name__)
    return "?" if shape is None else str(list(shape)), str(dtype).removeprefix("torch.")


def _cell(value: Any) -> Any:
    """A value as a table takes it; what is no single figure, which only saving refuses, as its text."""
    return value if value is None or isinstance(value, str | int | float) else str(value)
