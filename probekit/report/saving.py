"""The charts and pictures of pages as files for a paper: SVG, PNG and the data as CSV, drawn without a browser."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from probekit.report.blocks import Page
from probekit.report.characters import plain
from probekit.report.charts import CHARTS, Chart, Data, chart_of
from probekit.report.pictures import PNG, SVG
from probekit.report.theme import paper_config

FORMATS = ("svg", "png", "csv")
# Pixels of the drawing inside its axes, and how many dots a pixel becomes: 300 an inch at a column's width.
WIDTH = 420
SCALE = 4


@dataclass(frozen=True)
class Figure:
    """One chart as files: `name` without an ending, its caption, its description, and `files` by the ends of their
    names (`.svg`).
    """

    name: str
    caption: str
    description: str
    files: dict[str, bytes]


def draw_figures(pages: Sequence[tuple[str, Page]], formats: Sequence[str] = FORMATS) -> Iterator[Figure]:
    """The charts and pictures of the pages in their order, in these formats. A chart without a finite figure is left
    out, and so is a format that one does not have: a picture that was kept as pixels is no SVG.

    Raises RuntimeError with a sentence if vl-convert is not installed or cannot draw a chart.
    """
    stems = file_stems([name for name, _ in pages])
    for stem, (_, page) in zip(stems, pages, strict=True):
        for number, block in enumerate(filter(is_figure, page.blocks), start=1):
            name = file_name(stem, number, block["caption"])
            if block["type"] == "image":
                description, files = block["alternative"], _picture(name, block, formats)
            else:
                chart = chart_of(block)
                description, files = chart.description, _chart(name, chart, formats)
            if files:
                yield Figure(name, plain(block["caption"]), plain(description), files)


def is_figure(block: Mapping[str, Any]) -> bool:
    """Whether a block is a chart or a picture, which has a number among the figures of its page."""
    return block["type"] in CHARTS or block["type"] == "image"


def file_stems(names: Sequence[str]) -> list[str]:
    """How the files of each page begin, no two alike: `clamped-walk`, and `page`, `page-2` for names without a letter
    that a file's name has.
    """
    stems: list[str] = []
    for name in names:
        stem, count = _slug(name) or "page", 1
        while (candidate := stem if count == 1 else f"{stem}-{count}") in stems:
            count += 1
        stems.append(candidate)
    return stems


def file_name(stem: str, number: int, caption: str) -> str:
    """A name for the files of a page's n-th figure: `clamped-walk-03-loss-over-steps`."""
    return "-".join(filter(None, [stem, f"{number:02}", _slug(caption)]))


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words if len(words) <= 48 else words[:48].rpartition("-")[0] or words[:48]


def _chart(name: str, chart: Chart, formats: Sequence[str]) -> dict[str, bytes]:
    if chart.spec is None:
        return {}
    files = {f".{ending}": _draw(name, chart, ending) for ending in formats if ending != "csv"}
    if "csv" in formats and chart.data is not None:
        files[".csv"] = _csv(chart.data)
    return files


def _picture(name: str, block: dict[str, Any], formats: Sequence[str]) -> dict[str, bytes]:
    content = base64.b64decode(block["data"])
    files: dict[str, bytes] = {}
    if "svg" in formats and block["mime"] == SVG:
        files[".svg"] = content
    if "png" in formats:
        with _drawing(name, "png"):
            files[".png"] = content if block["mime"] == PNG else _vl_convert().svg_to_png(content.decode(), scale=SCALE)
    if "csv" in formats:
        for number, table in enumerate(block["tables"], start=1):
            ending = f"-{number}.csv" if len(block["tables"]) > 1 else ".csv"
            files[ending] = _csv(Data.of_table(table["columns"], table["rows"]))
    return files


def _csv(data: Data) -> bytes:
    return data.csv().encode("utf-8", errors="replace")


def _vl_convert() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise RuntimeError(
            "Figures are drawn by vl-convert, which is not installed: pip install vl-convert-python."
        ) from None
    return vl_convert


def _draw(name: str, chart: Chart, ending: str) -> bytes:
    spec = dict(chart.whole_spec or {})
    if spec.get("width") == "container":
        spec["width"] = WIDTH
    if isinstance(spec.get("autosize"), dict):
        del spec["autosize"]  # it fits a chart into a page; on paper the axes have this width, and labels their own
    vl_convert = _vl_convert()
    config = paper_config([entry.colour for entry in chart.key])
    with _drawing(name, ending):
        # No address is allowed, so that nothing is loaded.
        if ending == "svg":
            svg: str = vl_convert.vegalite_to_svg(spec, config=config, allowed_base_urls=[])
            return svg.encode()
        png: bytes = vl_convert.vegalite_to_png(spec, config=config, scale=SCALE, ppi=72, allowed_base_urls=[])
        return png


@contextmanager
def _drawing(name: str, ending: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:  # as vl-convert does, and a stack of its own below its first line
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise RuntimeError(f"The figure '{name}' cannot be drawn as {ending.upper()}: {reason}.") from None
