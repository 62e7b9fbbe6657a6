"""A page: what one analysis has to show, as an ordered list of plain blocks.

Blocks are dicts of JSON types from the moment they are added: strings encodable as UTF-8, figures finite or None.
A page is therefore the same page after `json.dumps` and `json.loads`, and drawing it needs neither the analysis nor
the libraries that its numbers came from.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probekit.report.characters import numbered, without_surrogates
from probekit.report.figures import Cell, cell, number
from probekit.report.frames import cleaned_html
from probekit.report.objects import block_of
from probekit.report.pictures import checked_picture
from probekit.report.specs import checked_spec
from probekit.report.tokens import (
    TokenRow,
    marks_json,
    row_from_json,
    row_json,
    trajectory_json,
    trajectory_rows,
)

SCHEMA = 1

Block = dict[str, Any]


@dataclass
class Page:
    """One analysis's page. Methods append blocks in the order in which a reader meets them.

    All text is plain text and is escaped when drawn. Figures may be Python, numpy or torch numbers; NaN and infinity
    become None and are shown as "–". Every method raises ValueError, with a sentence, for data that cannot be drawn.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.title = _text(self.title)

    @property
    def findings(self) -> list[str]:
        """The page's findings, in order; a report repeats them in its overview."""
        return [block["text"] for block in self.blocks if block["type"] == "finding"]

    def finding(self, text: str) -> None:
        """One sentence with its figures: the answer. Shown first, and in the report's overview and summary."""
        self._add("finding", text=_text(text))

    def heading(self, text: str) -> None:
        """A heading for the blocks that follow."""
        self._add("heading", text=_text(text))

    def prose(self, text: str) -> None:
        """Plain text; blank lines separate paragraphs."""
        self._add("prose", text=_text(text))

    def note(self, text: str) -> None:
        """A caveat or a limit, set apart from the prose."""
        self._add("note", text=_text(text))

    def tokens(
        self,
        rows: Sequence[TokenRow],
        caption: str = "",
        legend: str = "",
        collapsed: bool = False,
        align: bool | None = None,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Rows of tokens, coloured by value and marked right or wrong.

        `align` puts the tokens of all rows into columns by position (and scrolls sideways); otherwise each row wraps
        like text. Left out, rows are aligned where there are several and all have the same number of tokens. `marks`
        says in the key what the marks mean: `{"right": "the prompt's own token", "wrong": "another token"}`.
        """
        self._add(
            "tokens",
            rows=[row_json(row) for row in rows],
            caption=_text(caption),
            legend=_text(legend),
            collapsed=bool(collapsed),
            align=None if align is None else bool(align),
            marks=marks_json(marks),
        )

    def trajectory(
        self,
        series: Mapping[str, Sequence[TokenRow]],
        reference: TokenRow | None = None,
        caption: str = "",
        legend: str = "",
        collapsed: bool = False,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Tokens over steps, with a slider: for each series its row at the chosen step, such as a row a layer.

        `series[name][i]` is the row at the i-th step, its label the step's name ("step 40"), its note the figures
        there. A series that ends early stays at its last row. `reference` is a row that stands above all of them, such
        as the prompt. Of more tokens than a page can carry, evenly spaced steps are kept, and the page says so; the
        rows that are left out are not asked for, so a lazy sequence may make them on demand.
        """
        self._add(
            "trajectory",
            **trajectory_json(series),
            reference=None if reference is None else row_json(reference),
            caption=_text(caption),
            legend=_text(legend),
            collapsed=bool(collapsed),
            marks=marks_json(marks),
        )

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str = "",
        collapsed: bool = False,
        in_summary: bool = False,
        interactive: bool = False,
        targets: Sequence[str | None] | None = None,
        remark: str = "",
    ) -> None:
        """A table of text, numbers, truth values and None; each row has one cell for each column.

        One that is `in_summary` is also in the short text of the report, `summary.md`. One that is `interactive` has a
        search field, and headings that sort it. `targets` makes the first cell of each row a link: for each row a
        relative path, as in `links`, or `#` and the text of a heading of this page, or None. A `remark` stands below
        it.
        """
        names = [_text(name) for name in columns]
        cells = [[cell(value) for value in row] for row in rows]
        for index, row in enumerate(cells):
            if len(row) != len(names):
                raise ValueError(f"Row {index} of a table has {len(row)} cells, but there are {len(names)} columns.")
        if targets is not None and len(targets) != len(cells):
            raise ValueError(f"A table has {len(cells)} rows, but there are {len(targets)} targets of links.")
        extras: Block = {
            name: True for name, wanted in (("in_summary", in_summary), ("interactive", interactive)) if wanted
        }
        if targets is not None:
            extras["targets"] = [None if target is None else _target(target) for target in targets]
        if remark:
            extras["remark"] = _text(remark)
        self._add("table", columns=names, rows=cells, caption=_text(caption), collapsed=bool(collapsed), **extras)

    def links(self, targets: Sequence[tuple[str, str]], caption: str = "") -> None:
        """Links to files beside the report, each a text and a relative path such as `cells/1/report.html`.

        Raises ValueError for a target that leaves the report's folder or the disk: `https:`, `/`, `..`.
        """
        links = [{"text": _text(text), "target": _relative(target)} for text, target in targets]
        self._add("links", targets=links, caption=_text(caption))

    def lines(
        self,
        series: Mapping[str, Iterable[Sequence[Any]]],
        x: str = "step",
        y: str = "loss",
        caption: str = "",
        log_y: bool = False,
        description: str = "",
    ) -> None:
        """A line for each series of points (x, y). A y of None or NaN is a gap.

        An x is a number or a text, such as a site; texts stand side by side in the order in which they first appear.
        """
        self._add_series("lines", 2, series, x, y, caption, log_y, description)

    def band(
        self,
        series: Mapping[str, Iterable[Sequence[Any]]],
        x: str = "step",
        y: str = "loss",
        caption: str = "",
        log_y: bool = False,
        description: str = "",
    ) -> None:
        """A line with a band for each series of points (x, median, low, high), such as restarts with their spread.

        An x is a number or a text, as in `lines`.
        """
        self._add_series("band", 4, series, x, y, caption, log_y, description)

    def heatmap(
        self,
        values: Sequence[Sequence[float | None]],
        x_labels: Sequence[object],
        y_labels: Sequence[object],
        x: str = "position",
        y: str = "block",
        value: str = "score",
        caption: str = "",
        description: str = "",
        domain: tuple[float, float] | None = None,
    ) -> None:
        """A grid of values, `values[row][column]`, the first row on top; `domain` fixes the ends of the colour scale.

        Labels may repeat, as tokens do: the second `the` is drawn as `the₂`.
        """
        grid = [[number(entry) for entry in row] for row in values]
        if len(grid) != len(y_labels) or any(len(row) != len(x_labels) for row in grid):
            shape = f"{len(grid)} rows of {sorted({len(row) for row in grid})} values"
            raise ValueError(
                f"A heatmap has {len(y_labels)} y labels and {len(x_labels)} x labels, but its values are {shape}."
            )
        self._add(
            "heatmap",
            values=grid,
            x_labels=[_text(label) for label in x_labels],
            y_labels=[_text(label) for label in y_labels],
            x=_text(x),
            y=_text(y),
            value=_text(value),
            caption=_text(caption),
            description=_text(description),
            domain=_domain(domain),
        )

    def chart(self, spec: object, caption: str = "", description: str = "") -> None:
        """Any Vega-Lite chart: a dict, or an object with `to_dict()` such as an Altair chart.

        Raises ValueError for a spec that is not Vega-Lite, or that would load something: data by url, or images.
        """
        self._add("chart", spec=checked_spec(spec), caption=_text(caption), description=_text(description))

    def show(self, shown: object, caption: str = "", description: str = "") -> None:
        """An object of another library, as it is: a chart, a figure, a frame of data, or HTML.

        - A Vega-Lite chart, a dict or an object with a `to_dict()` that gives one, such as an Altair chart: as `chart`.
        - A pandas DataFrame, Series or Index, or a Styler's data: as `table`. Its index leads, unless that only counts
          the rows. Of more than 10,000 cells, evenly spaced rows are shown, and the page says so.
        - A matplotlib figure, the figure of an axes, or of what has one as `figure`, such as a grid of seaborn: as an
          SVG, or a PNG if that would be larger than 1 MB. Its lines, points, bars and images are below it as a table.
          The figure is not changed, and not closed.
        - Whatever else has a `_repr_html_()`: its HTML in a frame, without scripts, links and what it would load.

        `description` says what it shows to those who do not see it: it is the text of a chart or picture that is read
        aloud, and the title of a frame. Raises ValueError for anything else.
        """
        kind, content = block_of(shown)
        if kind == "chart":
            self.chart(content["spec"], caption, description)
        elif kind == "table":
            self.table(**content, caption=caption, interactive=len(content["rows"]) > 10)
        elif kind == "image":
            alternative = description or content["alternative"] or caption or "A figure drawn by matplotlib"
            self._image(**{**content, "alternative": alternative}, caption=caption)
        else:
            self._frame(**{**content, "title": description or caption or content["title"]}, caption=caption)

    def to_json(self) -> dict[str, Any]:
        """The page as JSON types only: `{"schema": 1, "title": …, "blocks": […]}`."""
        return {"schema": SCHEMA, "title": self.title, "blocks": copy.deepcopy(self.blocks)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Page":
        """The page that `to_json` wrote. Raises ValueError for another schema, an unknown or a malformed block."""
        if not isinstance(data, Mapping) or "schema" not in data:
            raise ValueError("This is not a page: it has no schema version. A page.json written by probekit has one.")
        if data["schema"] != SCHEMA:
            raise ValueError(
                f"This page was written with schema {data['schema']!r}, and this probekit reads schema {SCHEMA}: "
                "draw it with the probekit version that wrote it, or make the run again."
            )
        page, blocks = cls(data.get("title", "")), data.get("blocks", [])
        if not isinstance(blocks, list):
            raise ValueError(f"The blocks of a page are a list, but these are a {type(blocks).__name__}.")
        for index, block in enumerate(blocks):
            page._read(index, block)
        return page

    def _add(self, kind: str, **content: Any) -> None:
        self.blocks.append({"type": kind, **content})

    def _image(
        self,
        mime: str,
        data: str,
        size: Sequence[float],
        alternative: str,
        tables: Sequence[Mapping[str, Any]] = (),
        remark: str = "",
        caption: str = "",
    ) -> None:
        """A picture: base64 `data` of a PNG or SVG, its width and height in a page's pixels, and its data in tables."""
        lengths = [number(length) for length in size]
        if len(lengths) != 2 or not all(length is not None and 0 < length < 100_000 for length in lengths):
            raise ValueError(f"The size of a picture is a width and a height above zero, but it was {list(size)!r}.")
        kept = []
        for content in tables:
            page = Page("")  # a table is checked in one place
            page.table(content["columns"], content["rows"], content["caption"], remark=content["remark"])
            kept.append({name: page.blocks[0].get(name, "") for name in ("caption", "columns", "rows", "remark")})
        texts = {"alternative": _text(alternative), "remark": _text(remark), "caption": _text(caption)}
        self._add("image", mime=mime, data=checked_picture(mime, data), size=lengths, tables=kept, **texts)

    def _frame(self, html: str, title: str, remark: str = "", caption: str = "") -> None:
        """HTML by somebody else; it is cleaned here, whoever brings it."""
        cleaned = cleaned_html(html)
        texts = {"title": _text(title), "remark": _text(remark or cleaned.remark), "caption": _text(caption)}
        self._add("frame", html=cleaned.html, **texts)

    def _add_series(
        self,
        kind: str,
        size: int,
        series: Mapping[str, Iterable[Sequence[Any]]],
        x: str,
        y: str,
        caption: str,
        log_y: bool,
        description: str,
    ) -> None:
        # A list and not an object: the order of the series is their colour, and a JSON writer may sort keys.
        names = numbered([_text(name) for name in series])
        named = [
            {"name": name, "points": [_point(point, size) for point in points]}
            for name, points in zip(names, series.values(), strict=True)
        ]
        places = [point[0] for entry in named for point in entry["points"] if point[0] is not None]
        if len({isinstance(place, str) for place in places}) > 1:
            raise ValueError("The x of a chart are all numbers or all texts, but these points have both.")
        texts = {"x": _text(x), "y": _text(y), "caption": _text(caption), "description": _text(description)}
        self._add(kind, series=named, log_y=bool(log_y), **texts)

    def _read(self, index: int, block: Any) -> None:
        if not isinstance(block, Mapping):
            raise ValueError(f"Block {index} of a page is not an object but a {type(block).__name__}.")
        content = dict(block)
        kind = content.pop("type", None)
        readers = _readers(self)
        if not isinstance(kind, str) or kind not in readers:
            known = ", ".join(sorted(readers))
            raise ValueError(f"Block {index} of a page has the unknown type {kind!r}; known types: {known}.")
        try:
            if kind == "tokens":
                content["rows"] = [row_from_json(row) for row in content["rows"]]
            if kind == "trajectory":
                thinned = _text(content.pop("thinned"))
                reference = content["reference"]
                content["reference"] = None if reference is None else row_from_json(reference)
                content["series"] = trajectory_rows(content)
                del content["vocabulary"]
            if kind == "links":
                content["targets"] = [(entry["text"], entry["target"]) for entry in content["targets"]]
            if kind in ("lines", "band"):
                content["series"] = {entry["name"]: entry["points"] for entry in content["series"]}
            readers[kind](**content)
            if kind == "trajectory":
                self.blocks[-1]["thinned"] = self.blocks[-1]["thinned"] or thinned
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"Block {index} of a page, of type {kind!r}, is malformed: {error}.") from error


def _readers(page: Page) -> dict[str, Callable[..., None]]:
    adders = (page.finding, page.heading, page.prose, page.note, page.tokens, page.trajectory, page.table, page.links)
    charts = (page.lines, page.band, page.heatmap, page.chart)
    return {adder.__name__: adder for adder in (*adders, *charts)} | {"image": page._image, "frame": page._frame}


def _text(value: object) -> str:
    return without_surrogates(str(value))


def _target(target: str) -> str:
    return _text(target) if target.startswith("#") else _relative(target)


def _relative(target: str) -> str:
    parts = target.split("/")
    if not re.fullmatch(r"[\w.@+-][\w.@+ /-]*", target) or ".." in parts or "" in parts:
        raise ValueError(f"A link leads to a file beside the report or below it, but its target was {target!r}.")
    return target


def _point(point: Sequence[Any], size: int) -> list[Cell]:
    if len(point) != size:
        raise ValueError(f"A point of this chart has {size} figures, but {list(point)!r} has {len(point)}.")
    place, *figures = point
    return [_text(place) if isinstance(place, str) else number(place), *(number(figure) for figure in figures)]


def _domain(domain: Sequence[float] | None) -> list[float | int] | None:
    if domain is None:
        return None
    ends = [end for end in map(number, domain) if end is not None]
    if len(ends) != 2 or ends[0] >= ends[1]:
        raise ValueError(f"A heatmap's domain is two finite numbers, low before high, but it was {list(domain)!r}.")
    return ends
