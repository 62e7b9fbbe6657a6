"""A document as one HTML file that opens from disk: no request leaves it, and nothing in it was put there by a token.

Text is escaped by Jinja (autoescape) in element content and in double-quoted attributes only. Data for scripts stand
in `application/json` elements with every `<`, `>` and `&` as a unicode escape. The content-security policy allows the
style and the scripts by the hash of their text and nothing else, so markup that slipped through would not run.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from probekit.report.blocks import Page
from probekit.report.characters import plain, visible, visible_pieces
from probekit.report.charts import LEVELS, chart_of
from probekit.report.document import Document
from probekit.report.figures import column, figure, is_numeric
from probekit.report.runtime import vega_runtime

_TEMPLATES = Path(__file__).parent / "templates"
_CHARTS = ("lines", "band", "heatmap", "chart")
_JSON_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass
class _Section:
    """One analysis in the report: its anchor, its findings, and its other blocks ready for the template."""

    anchor: str
    name: str
    title: str
    findings: list[str]
    blocks: list[dict[str, Any]]

    @property
    def headings(self) -> list[dict[str, Any]]:
        return [block for block in self.blocks if block["type"] == "heading"]


def render_html(document: Document) -> str:
    """The report as one self-contained HTML text. The same document gives the same text, byte for byte.

    Raises RuntimeError if the Vega runtime cannot be embedded. Where vl-convert is not installed, charts are shown as
    their data and the page says why.
    """
    sections = [_section(index, name, page) for index, (name, page) in enumerate(document.pages, start=1)]
    has_charts = any(block.get("spec_json") for section in sections for block in section.blocks)
    runtime = vega_runtime() if has_charts else None
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    scripts = [*([runtime] if runtime else []), (_TEMPLATES / "page.js").read_text(encoding="utf-8")]
    template = _environment().get_template("report.html")
    return template.render(
        document=document,
        sections=sections,
        # Markup and not |safe: these are the only texts that reach the page unescaped, and all of them are ours.
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(style, scripts),
        charts_missing=has_charts and runtime is None,
    )


def _policy(style: str, scripts: list[str]) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    environment.filters["visible"] = visible
    environment.filters["paragraphs"] = _paragraphs
    environment.globals["levels"] = range(LEVELS)
    return environment


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", plain(text)) if part.strip()]


def _section(index: int, name: str, page: Page) -> _Section:
    anchor = f"analysis-{index}-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "page")
    blocks = [
        _view(block, f"{anchor}-{number}")
        for number, block in enumerate(page.blocks, start=1)
        if block["type"] != "finding"
    ]
    return _Section(anchor, name, page.title, page.findings, blocks)


def _view(block: dict[str, Any], anchor: str) -> dict[str, Any]:
    """A block with what its template needs beside its own data."""
    view = {**block, "anchor": anchor}
    if block["type"] == "tokens":
        return view | _token_view(block)
    if block["type"] == "table":
        return view | {"table": _table_view(block["columns"], block["rows"])}
    if block["type"] in _CHARTS:
        chart = chart_of(block)
        embedded = {"spec": chart.spec, "colours": [entry.colour for entry in chart.key], "labels": chart.labels}
        table = chart.table
        view |= {
            "chart": chart,
            "spec_json": None if chart.spec is None else Markup(_script_json(embedded)),
            "table": table and _table_view(table.columns, table.rows, table.row_headers),
            "thinned": table.thinned if table else "",
        }
    return view


def _script_json(data: object) -> str:
    """JSON that cannot end its script element, whatever is in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_JSON_ESCAPES)


def _table_view(columns: list[str], rows: list[list[Any]], row_headers: bool = False) -> dict[str, Any]:
    by_column = [[row[index] for row in rows] for index in range(len(columns))]
    texts = [column(values) for values in by_column]
    return {
        "columns": columns,
        "rows": [[cells[index] for cells in texts] for index in range(len(rows))],
        "numeric": [is_numeric(values) for values in by_column],
        "row_headers": row_headers,
    }


def _token_view(block: dict[str, Any]) -> dict[str, Any]:
    rows = block["rows"]
    lengths = {len(row["tokens"]) for row in rows}
    automatic = len(rows) > 1 and len(lengths) == 1 and lengths != {0}
    tokens = [token for row in rows for token in row["tokens"]]
    return {
        "aligned": automatic if block["align"] is None else block["align"],
        "rows": [_row_view(row) for row in rows],
        "width": max(lengths, default=0),
        "has_notes": any(row["note"] for row in rows),
        "has_labels": any(row["label"] for row in rows),
        "marks": [mark for mark in ("right", "wrong") if any(token.get("mark") == mark for token in tokens)],
        "has_values": any("value" in token for token in tokens),
    }


def _row_view(row: dict[str, Any]) -> dict[str, Any]:
    tokens = []
    entered = False
    for token in row["tokens"]:
        hover = _hover_text(token)
        # One tab stop a row, its first token with something to say; the arrow keys move on from there.
        tab = None if not hover else (-1 if entered else 0)
        entered = entered or bool(hover)
        tokens.append(
            {
                "pieces": visible_pieces(token["text"]),
                "classes": " ".join(_token_classes(token)),
                "mark": token.get("mark", ""),
                "hover": hover,
                "tab": tab,
            }
        )
    return {"label": row["label"], "note": row["note"], "tokens": tokens}


def _token_classes(token: dict[str, Any]) -> list[str]:
    classes = ["token"]
    if "mark" in token:
        classes.append(token["mark"])
    if "value" in token:
        classes.append(f"level-{min(int(token['value'] * LEVELS), LEVELS - 1)}")
    return classes


def _hover_text(token: dict[str, Any]) -> str:
    """The author's text for a token, else what its colour and mark say in words; empty where there is neither."""
    if token.get("title"):
        return plain(token["title"])
    said = [token["mark"]] if "mark" in token else []
    said += [f"value {figure(float(token['value']))}"] if "value" in token else []
    return f"{visible(token['text'])}\n{', '.join(said)}" if said else ""
