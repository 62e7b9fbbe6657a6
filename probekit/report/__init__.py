"""The report room: one self-contained HTML file drawn out of blocks of plain data.

A `Page` is what one analysis has to show, as an ordered list of JSON-able blocks; a `Document` is the report around
the pages. Nothing here knows a model, a tensor or a run, and importing this package imports neither torch nor numpy,
so a saved `page.json` can be drawn again anywhere.
"""

from probekit.report.blocks import Page
from probekit.report.document import Document
from probekit.report.html import render_html
from probekit.report.markdown import render_markdown
from probekit.report.saving import FORMATS as FIGURE_FORMATS
from probekit.report.saving import Figure, draw_figures
from probekit.report.tokens import Token, TokenRow

__all__ = [
    "FIGURE_FORMATS",
    "Document",
    "Figure",
    "Page",
    "Token",
    "TokenRow",
    "draw_figures",
    "render_html",
    "render_markdown",
]
