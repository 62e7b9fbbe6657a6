"""A page: what one analysis has to show, as an ordered list of plain blocks.

Blocks are dicts of JSON types from the moment they are added: strings encodable as UTF-8, figures finite or None.
A page is therefore the same page after `json.dumps` and `json.loads`, and drawing it needs neither the analysis nor
the libraries that its numbers came from.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from probekit.report.characters import numbered, without_surrogates
from probekit.report.figures import cell, number
from probekit.report.specs import checked_spec

SCHEMA = 1

Mark = Literal["right", "wrong"]
Block = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its text as decoded, whether it is right, a value in 0..1 for its colour, text for hover and focus."""

    text: str
    mark: Mark | None = None
    value: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A labelled sequence of tokens, such as one step of a trajectory; `note` stands at its end."""

    label: str
    tokens: Sequence[Token]
    note: str = ""


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
    ) -> None:
        """Rows of tokens, coloured by value and marked right or wrong.

        `align` puts the tokens of all rows into columns by position (and scrolls sideways); otherwise each row wraps
        like text. Left out, rows are aligned where there are several and all have the same number of tokens.
        """
        self._add(
            "tokens",
            rows=[_token_row(row) for row in rows],
            caption=_text(caption),
            legend=_text(legend),
            collapsed=bool(collapsed),
            align=align,
        )

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        caption: str = "",
        collapsed: bool = False,
        in_summary: bool = False,
    ) -> None:
        """A table of text, numbers, truth values and None; each row has one cell for each column.

        One that is `in_summary` is also in the short text of the report, `summary.md`.
        """
        names = [_text(name) for name in columns]
        cells = [[cell(value) for value in row] for row in rows]
        for index, row in enumerate(cells):
            if len(row) != len(names):
                raise ValueError(f"Row {index} of a table has {len(row)} cells, but there are {len(names)} columns.")
        summarised = {"in_summary": True} if in_summary else {}
        self._add("table", columns=names, rows=cells, caption=_text(caption), collapsed=bool(collapsed), **summarised)

    def links(self, targets: Sequence[tuple[str, str]], caption: str = "") -> None:
        """Links to files beside the report, each a text and a relative path such as `cells/1/report.html`.

        Raises ValueError for a target that leaves the report's folder or the disk: `https:`, `/`, `..`.
        """
        links = [{"text": _text(text), "target": _relative(target)} for text, target in targets]
        self._add("links", targets=links, caption=_text(caption))

    def lines(
        self,
        series: Mapping[str, Iterable[Sequence[float]]],
        x: str = "step",
        y: str = "loss",
        caption: str = "",
        log_y: bool = False,
        description: str = "",
    ) -> None:
        """A line for each series of points (x, y). A y of None or NaN is a gap."""
        self._add_series("lines", 2, series, x, y, caption, log_y, description)

    def band(
        self,
        series: Mapping[str, Iterable[Sequence[float]]],
        x: str = "step",
        y: str = "loss",
        caption: str = "",
        log_y: bool = False,
        description: str = "",
    ) -> None:
        """A line with a band for each series of points (x, median, low, high), such as restarts with their spread."""
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
        page = cls(data.get("title", ""))
        for index, block in enumerate(data.get("blocks", [])):
            page._read(index, block)
        return page

    def _add(self, kind: str, **content: Any) -> None:
        self.blocks.append({"type": kind, **content})

    def _add_series(
        self,
        kind: str,
        size: int,
        series: Mapping[str, Iterable[Sequence[float]]],
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
        texts = {"x": _text(x), "y": _text(y), "caption": _text(caption), "description": _text(description)}
        self._add(kind, series=named, log_y=bool(log_y), **texts)

    def _read(self, index: int, block: Any) -> None:
        if not isinstance(block, Mapping):
            raise ValueError(f"Block {index} of a page is not an object but a {type(block).__name__}.")
        content = dict(block)
        kind = content.pop("type", None)
        readers = _readers(self)
        if kind not in readers:
            known = ", ".join(sorted(readers))
            raise ValueError(f"Block {index} of a page has the unknown type {kind!r}; known types: {known}.")
        try:
            if kind == "tokens":
                content["rows"] = [_token_row_from_json(row) for row in content["rows"]]
            if kind == "links":
                content["targets"] = [(entry["text"], entry["target"]) for entry in content["targets"]]
            if kind in ("lines", "band"):
                content["series"] = {entry["name"]: entry["points"] for entry in content["series"]}
            readers[kind](**content)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"Block {index} of a page, of type {kind!r}, is malformed: {error}.") from error


def _readers(page: Page) -> dict[str, Callable[..., None]]:
    adders = (page.finding, page.heading, page.prose, page.note, page.tokens, page.table, page.links)
    charts = (page.lines, page.band, page.heatmap, page.chart)
    return {adder.__name__: adder for adder in (*adders, *charts)}


def _text(value: object) -> str:
    return without_surrogates(str(value))


def _relative(target: str) -> str:
    parts = target.split("/")
    if not re.fullmatch(r"[\w.@+-][\w.@+ /-]*", target) or ".." in parts or "" in parts:
        raise ValueError(f"A link leads to a file beside the report or below it, but its target was {target!r}.")
    return target


def _point(point: Sequence[float], size: int) -> list[float | int | None]:
    figures = [number(entry) for entry in point]
    if len(figures) != size:
        raise ValueError(f"A point of this chart has {size} figures, but {list(point)!r} has {len(figures)}.")
    return figures


def _domain(domain: Sequence[float] | None) -> list[float | int] | None:
    if domain is None:
        return None
    ends = [end for end in map(number, domain) if end is not None]
    if len(ends) != 2 or ends[0] >= ends[1]:
        raise ValueError(f"A heatmap's domain is two finite numbers, low before high, but it was {list(domain)!r}.")
    return ends


def _token_row(row: TokenRow) -> Block:
    return {"label": _text(row.label), "tokens": [_token(token) for token in row.tokens], "note": _text(row.note)}


def _token(token: Token) -> Block:
    """A token as JSON; what is absent is left out, because there are thousands of them."""
    if token.mark is not None and token.mark not in get_args(Mark):
        raise ValueError(f"A token's mark is 'right', 'wrong' or None, but it was {token.mark!r}.")
    content: Block = {"text": _text(token.text)}
    if token.mark is not None:
        content["mark"] = token.mark
    value = number(token.value)
    if value is not None:
        if not -1e-6 <= value <= 1 + 1e-6:
            raise ValueError(f"A token's value lies in 0..1 (it chooses a colour), but it was {value}.")
        content["value"] = min(max(value, 0), 1)
    if token.title:
        content["title"] = _text(token.title)
    return content


def _token_row_from_json(row: Mapping[str, Any]) -> TokenRow:
    return TokenRow(row["label"], [Token(**token) for token in row["tokens"]], row.get("note", ""))
