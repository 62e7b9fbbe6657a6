"""A page that was saved and then altered, in any of its parts: it is drawn, or refused with a sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib.figure import Figure

from probekit.report import Document, Page, Token, TokenRow, draw_figures, render_html, render_markdown

STRANGE: list[Any] = [None, True, -1, 1.5, "</script><b>", [], [[]], {}, {"__proto__": {"a": 1}}, [{}]]


class Html:
    def _repr_html_(self) -> str:
        return "<b style='color: red'>x</b>"


def whole_page() -> Page:
    """A page with each kind of block."""
    page = Page("t")
    page.finding("f")
    page.heading("h")
    page.prose("p")
    page.note("n")
    tokens = TokenRow("l", [Token("a", "right", 0.5, "t"), Token("b")], "n")
    page.tokens([tokens], caption="c", marks={"right": "x"})
    page.trajectory({"a": [tokens, TokenRow("s1", [Token("q")])]}, reference=tokens, marks={"right": "x"})
    page.table(["a", "b"], [["x", 1.5], [None, True]], "c", interactive=True, in_summary=True, targets=["a.html", "#h"])
    page.links([("a", "b.html")])
    page.lines({"a": [(0, 1), (1, 2.5)], "b": [(0, 3)]}, log_y=True)
    page.band({"a": [("x", 1, 0, 2)]})
    page.heatmap([[1, 2], [3, None]], ["a", "b"], ["c", "d"], domain=(0, 4))
    bar = {"mark": "bar", "encoding": {"x": {"field": "a"}}}
    page.chart(bar | {"data": {"values": [{"a": 1}]}})
    page.chart(bar | {"data": {"name": "n"}, "datasets": {"n": [{"a": 1}]}})
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([1, 2], [3, 4])
    page.show(figure)
    page.show(Html())
    return page


def places(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each part of a JSON document, but to the document itself."""
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def altered(block: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(block)
    *way, last = path
    part: Any = changed
    for key in way:
        part = part[key]
    part[last] = value
    return changed


BLOCKS = whole_page().to_json()["blocks"]


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{at}-{block['type']}" for at, block in enumerate(BLOCKS)])
def test_whatever_stands_in_place_of_a_part_is_drawn_or_refused_with_a_sentence(block: dict[str, Any]) -> None:
    sentences = set()
    for path in places(block):
        for value in STRANGE:
            try:
                page = Page.from_json({"schema": 1, "title": "t", "blocks": [altered(block, path, value)]})
            except ValueError as error:
                sentences.add(str(error))
                continue
            document = Document("t", "q", pages=[("n", page)])
            assert "</script><b>" not in render_html(document)
            render_markdown(document)
            list(draw_figures(document.pages, ["csv"]))
            json.dumps(page.to_json(), allow_nan=False)
    assert sentences
    assert [sentence for sentence in sentences if not sentence.endswith(".") or "\n" in sentence] == []


def test_a_chart_is_not_nested_without_end() -> None:
    part: list[Any] = []
    for _ in range(400):
        part = [part]
    block = {"type": "chart", "caption": "", "description": "", "spec": {"mark": "bar", "params": part}}
    with pytest.raises(ValueError, match="at most 100 deep in each other"):
        Page.from_json({"schema": 1, "title": "t", "blocks": [block]})
