"""The charts of pages as files for a paper: SVG, PNG and the data as CSV, drawn by vl-convert without a browser."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from probekit.report.blocks import Page
from probekit.report.characters import plain
from probekit.report.charts import CHARTS, Chart, chart_of
from probekit.report.theme import paper_config

FORMATS = ("svg", "png", "csv")
# Pixels of the drawing inside its axes, and how many dots a pixel becomes: 300 an inch at a column's width.
WIDTH = 420
SCALE = 4


@dataclass(frozen=True)
class Figure:
    """One chart as files: `name` without an ending, its caption, its description, and `files` by their ending."""

    name: str
    caption: str
    description: str
    files: dict[str, bytes]


def draw_figures(pages: Sequence[tuple[str, Page]], formats: Sequence[str] = FORMATS) -> Iterator[Figure]:
    """The charts of the pages in their order, in these formats. A chart without a finite figure is left out.

    Raises RuntimeError with a sentence if vl-convert is not installed or cannot draw a chart.
    """
    for anchor, block in charts_of(pages):
        chart = chart_of(block)
        if chart.spec is None:
            continue
        yield Figure(
            name=anchor,
            caption=plain(block["caption"]),
            description=chart.description,
            files={ending: content for ending in formats if (content := _draw(anchor, chart, ending)) is not None},
        )


def charts_of(pages: Sequence[tuple[str, Page]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each block that is a chart with the name that its files have: analysis, number among its charts, caption."""
    for name, page in pages:
        charts = [block for block in page.blocks if block["type"] in CHARTS]
        for number, block in enumerate(charts, start=1):
            yield file_name(name, number, block["caption"]), block


def file_name(analysis: str, number: int, caption: str) -> str:
    """A name for files: `clamped-walk-03-loss-over-steps`."""
    words = [_slug(analysis) or "page", f"{number:02}", _slug(caption)]
    return "-".join(filter(None, words))


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words if len(words) <= 48 else words[:48].rpartition("-")[0] or words[:48]


def _draw(name: str, chart: Chart, ending: str) -> bytes | None:
    if ending == "csv":
        return None if chart.data is None else chart.data.csv().encode("utf-8", errors="replace")
    spec = dict(chart.whole_spec or {})
    if spec.get("width") == "container":
        spec["width"] = WIDTH
    if isinstance(spec.get("autosize"), dict):
        del spec["autosize"]  # it fits a chart into a page; on paper the axes have this width, and labels their own
    try:
        import vl_convert
    except ImportError:
        raise RuntimeError(
            "Figures are drawn by vl-convert, which is not installed: pip install vl-convert-python."
        ) from None
    config = paper_config([entry.colour for entry in chart.key])
    try:
        # No address is allowed, so that nothing is loaded.
        if ending == "svg":
            svg: str = vl_convert.vegalite_to_svg(spec, config=config, allowed_base_urls=[])
            return svg.encode()
        png: bytes = vl_convert.vegalite_to_png(spec, config=config, scale=SCALE, ppi=72, allowed_base_urls=[])
        return png
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(f"The chart '{name}' cannot be drawn as {ending.upper()}: {reason}.") from None
