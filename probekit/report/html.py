"""A document as one HTML file that opens from disk: no request leaves it, and nothing in it was put there by a token.

Text is escaped by Jinja (autoescape) in element content and in double-quoted attributes only. Data for scripts stand
in `application/json` elements with every `<`, `>` and `&` as a unicode escape. The content-security policy allows the
style and the scripts by the hash of their text and nothing else, so markup that slipped through would not run.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from probekit.report.blocks import Page
from probekit.report.characters import plain, visible
from probekit.report.charts.series import LEVELS
from probekit.report.document import Document
from probekit.report.frames import FrameDocument
from probekit.report.runtime import vega_runtime
from probekit.report.saving import file_name, file_stems, is_figure
from probekit.report.theme import STYLESHEET, VEGA_CONFIG
from probekit.report.views import script_json, view

_TEMPLATES = Path(__file__).parent / "templates"
# The page's own behaviour, in the order in which it is needed; together they are one script.
_SCRIPTS = ("tips", "tokens", "trajectories", "tables", "charts", "saving", "frames", "page")


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
    stems = file_stems([name for name, _ in document.pages])
    sections = [
        _section(index, name, page, stem)
        for index, ((name, page), stem) in enumerate(zip(document.pages, stems, strict=True), start=1)
    ]
    blocks = [block for section in sections for block in section.blocks]
    frames: list[FrameDocument] = [block["document"] for block in blocks if block["type"] == "frame"]
    has_pictures = any(block["type"] == "image" for block in blocks) or any(frame.has_pictures for frame in frames)
    has_charts = any(block.get("spec_json") for block in blocks)
    runtime = vega_runtime() if has_charts else None
    style = STYLESHEET.read_text(encoding="utf-8")
    scripts = [*([runtime] if runtime else []), _page_script()]
    template = _environment().get_template("report.html")
    return template.render(
        document=document,
        sections=sections,
        # Markup and not |safe: these are the only texts that reach the page unescaped, and all of them are ours.
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        policy=_policy([style, *(frame.style for frame in frames)], scripts, has_pictures),
        theme=Markup(script_json(VEGA_CONFIG)) if has_charts else None,
        charts_missing=has_charts and runtime is None,
    )


@cache
def _page_script() -> str:
    parts = [(_TEMPLATES / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();"


def _policy(styles: list[str], scripts: list[str], has_pictures: bool) -> str:
    """What the page may use, and with it its frames, which are under the same policy."""
    allowed = {
        "script-src": " ".join(map(_hash, scripts)),
        "style-src": " ".join(dict.fromkeys(map(_hash, styles))),
        **({"img-src": "data:"} if has_pictures else {}),
    }
    listed = "; ".join(f"{name} {sources}" for name, sources in allowed.items())
    return f"default-src 'none'; {listed}; base-uri 'none'; form-action 'none'"


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
    environment.filters["longest_line"] = lambda text: max(map(len, text.split("\n")))
    environment.globals["levels"] = range(LEVELS)
    return environment


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", plain(text)) if part.strip()]


def _section(index: int, name: str, page: Page, stem: str) -> _Section:
    anchor = f"analysis-{index}-{stem}"
    blocks, figures = [], 0
    for number, block in enumerate(page.blocks, start=1):
        if block["type"] == "finding":
            continue
        figures += is_figure(block)
        blocks.append(view(block, f"{anchor}-{number}", file_name(stem, figures, block.get("caption", ""))))
    headings = {f"#{block['text']}": f"#{block['anchor']}" for block in reversed(blocks) if block["type"] == "heading"}
    for block in blocks:
        if block["type"] == "table" and "targets" in block:
            block["targets"] = [_place(target, headings) for target in block["targets"]]
    return _Section(anchor, name, page.title, page.findings, blocks)


def _place(target: str | None, headings: dict[str, str]) -> str | None:
    """Where a link leads: to the anchor of a heading, if it names one that there is, else where it says."""
    return headings.get(target) if target and target.startswith("#") else target
