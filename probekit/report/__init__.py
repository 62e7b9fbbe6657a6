"""The report room: one self-contained HTML file drawn out of blocks of plain data.

A `Page` is what one analysis has to show, as an ordered list of JSON-able blocks; a `Document` is the report around
the pages. Nothing here knows a model, a tensor or a run, and importing this package imports neither torch nor numpy,
so a saved `page.json` can be drawn again anywhere.
"""

from probekit.report.blocks import Page, Token, TokenRow
from probekit.report.document import Document
from probekit.report.html import render_html
from probekit.report.markdown import render_markdown

__all__ = ["Document", "Page", "Token", "TokenRow", "render_html", "render_markdown"]
