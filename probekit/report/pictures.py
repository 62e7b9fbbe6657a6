"""Pictures that a page carries with it: what may be one, and how a figure of matplotlib becomes one.

An SVG inside an `img` element runs nothing and loads nothing. It is checked all the same, because a reader can save
it, and what is opened as a file of its own would run its scripts.
"""

import base64
import binascii
import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from probekit.report.characters import one_line, without_surrogates
from probekit.report.tabular import table_content

SVG, PNG = "image/svg+xml", "image/png"
# Past this, a figure is kept as pixels: a cloud of 100,000 points is 10 MB of SVG, which no browser draws quickly.
MOST_SVG_BYTES = 1_000_000
PNG_DPI = 192
MOST_PIXELS = 12_000_000
# Pixels of a page in an inch, by definition of CSS; an SVG of matplotlib has 72 points in one.
CSS_DPI = 96

_DRAWING = """svg g defs symbol use a path rect circle ellipse line polyline polygon image text tspan textPath title
desc style clipPath mask marker pattern linearGradient radialGradient stop metadata filter feBlend feColorMatrix
feComposite feFlood feGaussianBlur feMerge feMergeNode feOffset"""
_SVG_ELEMENTS = frozenset(_DRAWING.split())
_SVG_SPACE = "{http://www.w3.org/2000/svg"
_METADATA = ("http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/", "http://creativecommons.org/ns#")
_DECLARATIONS = re.compile(r"<!(?:ENTITY|ATTLIST|ELEMENT|NOTATION)|<\?(?!xml\s)", re.IGNORECASE)
_ADDRESS = re.compile(r"#|data:image/(?:png|jpeg);base64,|$")
_LINK = re.compile(r"https?:|mailto:|#|$", re.IGNORECASE)
_LOADING = re.compile(r"@import|\\|url\(\s*[\"']?(?!#)", re.IGNORECASE)


def checked_picture(mime: str, data: str) -> str:
    """The base64 text of a picture, if it is one of the declared type that holds nothing but a drawing.

    Raises ValueError with a sentence for another type, for text that is no base64, for data of another type, and for an
    SVG with scripts, handlers or addresses.
    """
    if mime not in (SVG, PNG):
        raise ValueError(f"A picture of a page is {SVG} or {PNG}, but this one is declared as {mime!r}.")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError("The data of a picture are base64, but these are not.") from None
    if mime == PNG and not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("A picture is declared as a PNG, but its data do not begin as one does.")
    if mime == SVG:
        _check_svg(content)
    return base64.b64encode(content).decode("ascii")


def picture_of(figure: Any) -> dict[str, Any]:
    """A figure of matplotlib as a block's content: an SVG with its text as outlines, or a PNG if that is too large.

    The same figure gives the same bytes. It is drawn and not changed: its canvas, size and settings stay its own.
    Raises ValueError with matplotlib's reason if it cannot be drawn.
    """
    matplotlib = sys.modules["matplotlib"]
    # Outlines look right where its fonts are not installed. Ids are hashed with a salt of ours, and not a random one.
    settings = {"svg.fonttype": "path", "svg.hashsalt": "probekit", "svg.image_inline": True}
    remarks = []
    try:
        with matplotlib.rc_context(settings):
            try:
                content, mime = _saved(figure, "svg", 2 * CSS_DPI, {"Date": None, "Creator": None}), SVG
                root = ElementTree.fromstring(content)
                size = [float(root.get(name, "0").removesuffix("pt")) * CSS_DPI / 72 for name in ("width", "height")]
            except _TooLargeError:
                width, height = figure.get_size_inches()
                dpi = min(PNG_DPI, (MOST_PIXELS / (width * height)) ** 0.5)
                content, mime = _saved(figure, "png", dpi, {"Software": None}), PNG
                size = [int.from_bytes(content[at : at + 4], "big") * CSS_DPI / dpi for at in (16, 20)]
                remarks.append("Kept as pixels, because as a drawing it would be larger than 1 MB.")
    except Exception as error:
        raise ValueError(f"matplotlib cannot draw this figure: {type(error).__name__}: {error}") from error
    tables, untold = figure_tables(figure)
    remarks += [untold] if untold else []
    return {
        "mime": mime,
        "data": base64.b64encode(content).decode("ascii"),
        "size": [round(length, 2) for length in size],
        "alternative": _alternative(figure),
        "tables": tables,
        "remark": " ".join(remarks),
    }


class _TooLargeError(Exception):
    pass


class _Sink(io.BytesIO):
    """Takes an SVG as it is written, and ends the drawing of one that becomes too large."""

    limit: int | None = None

    def write(self, part: Any, /) -> int:
        if self.limit is not None and self.tell() > self.limit:
            raise _TooLargeError
        return super().write(part)


def _saved(figure: Any, kind: str, dpi: float, metadata: Mapping[str, None]) -> bytes:
    sink = _Sink()
    sink.limit = MOST_SVG_BYTES if kind == "svg" else None
    # Tight, as notebooks show figures: labels that stick out of the figure are not cut off.
    figure.savefig(sink, format=kind, dpi=dpi, bbox_inches="tight", metadata=metadata)
    return sink.getvalue()


def _alternative(figure: Any) -> str:
    """What the figure says in words: its titles and the labels of its axes."""
    parts = [figure.get_suptitle()] if hasattr(figure, "get_suptitle") else []
    for axes in figure.axes:
        labels = " by ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        parts.append(": ".join(filter(None, (axes.get_title(), labels))))
    return without_surrogates("; ".join(one_line(part) for part in parts if part))


def figure_tables(figure: Any) -> tuple[list[dict[str, Any]], str]:
    """The data of a figure as far as its artists hold them, in tables; and a sentence if some hold none."""
    drawn_on = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    many = len(drawn_on) > 1
    points: list[list[object]] = []
    grids: list[dict[str, Any]] = []
    untold = False
    for number, axes in enumerate(drawn_on, start=1):
        place = [axes.get_title() or f"axes {number}"] if many else []
        told: set[int] = set()
        for name, x, y, artists in _series(axes):
            told.update(map(id, artists))
            points += [[*place, name, *pair] for pair in zip(x, y, strict=False)]
        for artist in (*axes.images, *axes.collections):
            values = artist.get_array() if id(artist) not in told and hasattr(artist, "get_array") else None
            if values is not None and values.ndim == 2 and 0 not in values.shape:
                told.add(id(artist))
                names = ["row", *(f"column {index}" for index in range(values.shape[1]))]
                rows = [[index, *row] for index, row in enumerate(values.tolist())]
                grids.append({"caption": ", ".join(place), **table_content(names, rows)})
        drawn = (*axes.lines, *axes.collections, *axes.images, *axes.patches)
        untold = untold or any(id(artist) not in told for artist in drawn)
    tables = grids
    if points:
        only = drawn_on[0]
        x_name, y_name = ("x", "y") if many else (only.get_xlabel() or "x", only.get_ylabel() or "y")
        names = [*(["axes"] if many else []), "series", x_name, y_name]
        tables = [{"caption": "", **table_content(names, points)}, *grids]
    if untold:
        return tables, "Not everything drawn here holds its data, so the table below lacks some." if tables else (
            "matplotlib does not tell the data of this drawing."
        )
    return tables, ""


def _series(axes: Any) -> list[tuple[str, Sequence[Any], Sequence[Any], Sequence[Any]]]:
    """Lines, clouds of points and bars: the name of each, its x, its y, and the artists that it is drawn by."""
    found: list[tuple[str, Sequence[Any], Sequence[Any], Sequence[Any]]] = []

    def add(kind: str, artist: Any, x: Sequence[Any], y: Sequence[Any], artists: Sequence[Any]) -> None:
        label = str(artist.get_label() or "")
        number = 1 + sum(bool(len(each)) for _, each, _, _ in found)
        found.append((label if label and not label.startswith("_") else f"{kind} {number}", x, y, artists))

    for line in axes.lines:
        if all(line.get_transform().contains_branch_seperately(axes.transData)):  # matplotlib's spelling
            # As they were given: dates and names, not the axis's own numbers.
            add("line", line, line.get_xdata(orig=True), line.get_ydata(orig=True), [line])
        else:
            add("line", line, [], [], [line])  # a rule across the axes: it has a place, but no data
    for cloud in axes.collections:
        if type(cloud).__name__ == "PathCollection":
            offsets = cloud.get_offsets().tolist()
            x, y = ([pair[axis] for pair in offsets] for axis in (0, 1))
            add("points", cloud, _spelled(axes.xaxis, x), _spelled(axes.yaxis, y), [cloud])
    for bars in axes.containers:
        if type(bars).__name__ == "BarContainer":
            upright = getattr(bars, "orientation", "vertical") != "horizontal"
            boxes = [bar.get_bbox() for bar in bars.patches]
            x = [(box.x0 + box.x1) / 2 if upright else box.x1 for box in boxes]
            y = [box.y1 if upright else (box.y0 + box.y1) / 2 for box in boxes]
            x, y = (_spelled(axes.xaxis, x), y) if upright else (x, _spelled(axes.yaxis, y))
            add("bars", bars, x, y, bars.patches)
    return found


def _spelled(axis: Any, values: list[Any]) -> list[Any]:
    """Places on an axis of names or dates in its own words; on an axis of numbers, as they are."""
    formatter = axis.get_major_formatter()
    if type(formatter).__name__ == "StrCategoryFormatter":
        return list(formatter.format_ticks(values))
    if "Date" in type(formatter).__name__:
        dates = sys.modules["matplotlib.dates"]
        return [dates.num2date(value).replace(tzinfo=None) if value is not None else None for value in values]
    return values


def _check_svg(content: bytes) -> None:
    try:
        text = content.decode("utf-8")
        if _DECLARATIONS.search(text):
            raise ValueError("An SVG of a page has no entities and no processing instructions, but this one does.")
        root = ElementTree.fromstring(text)
    except UnicodeDecodeError:
        raise ValueError("An SVG of a page is UTF-8, but this one is not.") from None
    except ElementTree.ParseError as error:
        raise ValueError(f"A picture is declared as an SVG, but its data are not well-formed: {error}.") from None
    if root.tag not in ("svg", f"{_SVG_SPACE}}}svg"):
        raise ValueError(f"A picture is declared as an SVG, but its data are {root.tag!r}.")
    for element in root.iter():
        space, _, name = str(element.tag).rpartition("}")
        drawn = name in _SVG_ELEMENTS and space in ("", _SVG_SPACE)
        if not drawn and not space.removeprefix("{").startswith(_METADATA):
            raise ValueError(f"An SVG of a page holds nothing but a drawing, but this one has the element {name!r}.")
        if name == "style" and _LOADING.search(element.text or ""):
            raise ValueError("The style sheet of an SVG of a page loads nothing, but this one has an address.")
        for attribute, value in element.attrib.items():
            _check_attribute(name, attribute.rpartition("}")[2], value)


def _check_attribute(element: str, name: str, value: str) -> None:
    if name.lower().startswith("on"):
        raise ValueError(f"An SVG of a page runs nothing, but this one has the attribute {name!r}.")
    allowed = _LINK if element == "a" else _ADDRESS
    if name in ("href", "src") and not allowed.match(value.strip()):
        raise ValueError(f"An SVG of a page carries what it draws, but this one leads to {value[:80]!r}.")
    if name not in ("d", "id") and _LOADING.search(value):
        raise ValueError(f"An SVG of a page carries what it draws, but its {name} is {value[:80]!r}.")
