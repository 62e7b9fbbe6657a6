"""What `Page.show` makes of the objects of other libraries."""

import base64
import copy
import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from probekit.report import Document, Page, render_html, render_markdown
from probekit.report.frames import cleaned_html, frame_document
from probekit.report.tabular import MOST_CELLS
from tests.report.conftest import HOSTILE


def shown(obj: object, **texts: str) -> dict[str, Any]:
    """The one block that shows it; the page is the same page after a round trip through JSON, and can be drawn."""
    page = Page("t")
    page.show(obj, **texts)
    again = Page.from_json(json.loads(json.dumps(page.to_json(), allow_nan=False)))
    assert again.to_json() == page.to_json()
    html_of(page).encode("utf-8")
    (block,) = page.blocks
    return block


def html_of(page: Page) -> str:
    document = Document("t", "q", pages=[("name", page)])
    render_markdown(document).encode("utf-8")
    return render_html(document)


def policy_of(page: Page) -> str:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html_of(page))
    assert found is not None
    return found[1].replace("&#39;", "'")


def of_html(html: object) -> Any:
    """An object whose `_repr_html_` returns this."""
    return type("Author", (), {"_repr_html_": lambda self: html})()


# ---- pandas ----------------------------------------------------------------------------------------------------------


def test_a_frame_is_a_table_without_the_index_that_only_counts_its_rows() -> None:
    block = shown(pd.DataFrame({"block": [0, 1], "score": [0.5, math.nan], "name": ["a", None]}), caption="Scores")
    assert block == {
        "type": "table",
        "columns": ["block", "score", "name"],
        "rows": [[0, 0.5, "a"], [1, None, None]],
        "caption": "Scores",
        "collapsed": False,
    }


@pytest.mark.parametrize(
    ("index", "names", "leading"),
    [
        (pd.Index(["x", "y"]), ["index"], [["x"], ["y"]]),
        (pd.RangeIndex(2, name="step"), ["step"], [[0], [1]]),
        (pd.RangeIndex(1, 3), ["index"], [[1], [2]]),
        (pd.Index([1, 0]), ["index"], [[1], [0]]),
        (
            pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["site", None]),
            ["site", "level 1"],
            [["a", 1], ["b", 2]],
        ),
    ],
)
def test_an_index_that_says_something_leads(index: pd.Index, names: list[str], leading: list[list[Any]]) -> None:
    block = shown(pd.DataFrame({"v": [7, 8]}, index=index))
    assert block["columns"] == [*names, "v"]
    assert block["rows"] == [[*leading[0], 7], [*leading[1], 8]]


def test_columns_may_repeat_have_levels_or_be_no_text() -> None:
    assert shown(pd.DataFrame([[1, 2, 3]], columns=["a", "a", 0]))["columns"] == ["a", "a", "0"]
    columns = pd.MultiIndex.from_tuples([("loss", "mean"), ("loss", ""), (pd.Timestamp("2020-01-01"), 1)])
    assert shown(pd.DataFrame([[1, 2, 3]], columns=columns))["columns"] == [
        "loss / mean",
        "loss",
        "2020-01-01 00:00:00 / 1",
    ]
    counted = pd.crosstab(pd.Series(["a", "b"], name="kind"), pd.Series([True, False], name="right"))
    assert shown(counted)["columns"] == ["kind \\ right", "False", "True"]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        (pd.array([1, None], dtype="Int64"), [1, None]),
        (pd.array([True, None], dtype="boolean"), [True, None]),
        (pd.Categorical(["b", None, "a"]), ["b", None, "a"]),
        (np.array([1.5, np.inf], dtype="float32"), [1.5, None]),
        (np.array([1 + 2j, -1j]), ["1+2j", "-0-1j"]),
        (pd.to_datetime(["2020-01-02", None]), ["2020-01-02", None]),
        (pd.to_datetime(["2020-01-02 03:04", "2020-01-02 00:00"]), ["2020-01-02 03:04:00", "2020-01-02 00:00:00"]),
        (pd.to_datetime(["2020-01-02"], utc=True), ["2020-01-02 00:00:00+00:00"]),
        (pd.to_timedelta([1, None], unit="h"), ["0 days 01:00:00", None]),
        (pd.period_range("2020-01", periods=1, freq="M"), ["2020-01"]),
        (pd.interval_range(0, 1), ["(0, 1]"]),
        ([[1, 2], {"a": 1}, {3}, (), b"\x00"], ["[1, 2]", "{'a': 1}", "{3}", "()", "b'\\x00'"]),
        ([np.float32(0.5), np.int64(3), np.bool_(True), np.str_("x"), np.datetime64("NaT")], [0.5, 3, True, "x", None]),
        ([pd.NA, pd.NaT, None, math.nan, -math.inf], [None] * 5),
        ([np.longdouble(0.5), np.datetime64("2020-01-02T03:04:05.600")], [0.5, "2020-01-02 03:04:05.6"]),
        ([Unspeakable(), "\ud800", 10**40], ["<Unspeakable>", "⟨U+D800⟩", 10**40]),
        ([list(range(10_000))], [str(list(range(10_000)))[:1000] + "…"]),
    ],
)
def test_a_cell_is_what_its_value_says(values: Any, cells: list[Any]) -> None:
    series = pd.Series(values) if not isinstance(values, list) else pd.Series(values, dtype=object)
    assert [row[-1] for row in shown(series.to_frame("v"))["rows"]] == cells


def test_a_series_an_index_and_a_stylers_data_are_tables() -> None:
    assert shown(pd.Series([1, 2], index=["a", "b"]))["columns"] == ["index", "value"]
    assert shown(pd.Series([1, 2], name="loss"))["columns"] == ["loss"]
    assert shown(pd.Index([3, 4], name="seed"))["rows"] == [[3], [4]]
    levels = pd.MultiIndex.from_product([["a"], [1, 2]], names=["site", "site"])
    assert shown(levels) | {"type": ""} == {
        "type": "",
        "columns": ["site", "site"],
        "rows": [["a", 1], ["a", 2]],
        "caption": "",
        "collapsed": False,
    }
    styled = shown(pd.DataFrame({"v": [0.123456]}).style.format("{:.1f}").highlight_max())
    assert styled["rows"] == [[0.123456]]
    assert "without the Styler's formats" in styled["remark"]


def test_empty_frames_are_tables() -> None:
    assert shown(pd.DataFrame())["rows"] == []
    assert shown(pd.DataFrame({"a": []}))["columns"] == ["a"]
    assert shown(pd.DataFrame(index=["x"]))["rows"] == [["x"]]


def test_of_a_long_frame_rows_are_shown_evenly_spaced_with_their_places() -> None:
    block = shown(pd.DataFrame(np.arange(300_000.0).reshape(100_000, 3)))
    assert block["columns"] == ["index", "0", "1", "2"]
    assert 0.9 * MOST_CELLS / 3 <= len(block["rows"]) <= MOST_CELLS / 3 + 1
    places = [row[0] for row in block["rows"]]
    assert {after - before for before, after in pairwise(places)} == {places[1]}
    assert all(row[1] == 3 * row[0] for row in block["rows"])
    assert block["remark"].startswith(f"{len(places)} of 100000 rows, evenly spaced")
    assert block["remark"] in html_of(Page("t", [block]))


def test_of_a_wide_frame_the_outer_columns_are_shown() -> None:
    block = shown(pd.DataFrame(np.zeros((3, 5_000))))
    assert [block["columns"][place] for place in (0, 99, 100, -1)] == ["0", "99", "4900", "4999"]
    assert "200 of 5000 columns, the first and the last" in block["remark"]


def test_a_frame_is_no_chart_whatever_its_columns_are_called() -> None:
    assert shown(pd.DataFrame({"mark": ["bar"], "layer": [[]], "$schema": ["vega-lite"]}))["type"] == "table"


def test_hostile_cells_and_names_stay_text() -> None:
    page = Page("t")
    # As objects: where pyarrow is installed, pandas keeps texts in it, which refuses half a pair of surrogates.
    columns = pd.Index([text or "empty" for text in HOSTILE], dtype=object)
    index = pd.Index([HOSTILE[0]], name=HOSTILE[1], dtype=object)
    frame = pd.DataFrame([HOSTILE], index=index, columns=columns, dtype=object)
    page.show(frame, caption=HOSTILE[0], description=HOSTILE[1])
    text = html_of(page)
    assert "<script>window.ranHostile" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    assert "⟨U+202E⟩gnp.exe" in text


# ---- Altair, and anything with to_dict() -----------------------------------------------------------------------------

DATA = pd.DataFrame({"step": range(6), "loss": [3.0, 2, 1, 1, 0.5, 0.2], "kind": list("aabbcc")})
POINTS = alt.Chart(DATA).mark_point().encode(x="step:Q", y="loss:Q")
CUT = alt.param(value=3, bind=alt.binding_range(min=0, max=6), name="cut")
BRUSH = alt.selection_interval()
CHARTS: dict[str, Any] = {
    "one": POINTS,
    "sized": POINTS.properties(width=300, height=120, title="t"),
    "layered": POINTS + POINTS.mark_line(),
    "beside": POINTS | POINTS.mark_bar(),
    "below": POINTS & POINTS,
    "facets": POINTS.facet("kind:N"),
    "rows": POINTS.encode(row="kind:N"),
    "repeated": alt.Chart(DATA)
    .mark_point()
    .encode(x="step", y=alt.Y(alt.repeat("row"), type="quantitative"))
    .repeat(["loss"]),
    "chosen": POINTS.add_params(BRUSH).encode(color=alt.condition(BRUSH, "kind:N", alt.value("grey"))),
    "transformed": POINTS.transform_filter(alt.datum.step < CUT)
    .transform_calculate(z="datum.loss * 2")
    .add_params(CUT),
    "configured": POINTS.configure(background="white").configure_axis(labelColor="red"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_an_altair_chart_of_any_shape_is_a_chart(name: str) -> None:
    block = shown(CHARTS[name], caption="c", description="d")
    assert (block["type"], block["caption"], block["description"]) == ("chart", "c", "d")
    assert block["spec"]["datasets"]


def test_a_chart_of_more_rows_than_altair_allows_has_them_all_and_the_limit_stays() -> None:
    many = alt.Chart(pd.DataFrame({"x": range(6_000)})).mark_point().encode(x="x")
    page = Page("t")
    for add in (page.show, page.chart):
        add(many)
        (rows,) = page.blocks[-1]["spec"]["datasets"].values()
        assert len(rows) == 6_000
    with pytest.raises(alt.MaxRowsError):
        many.to_dict()


def test_data_that_the_author_keeps_in_files_are_in_the_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with alt.data_transformers.enable("json"):
        block = shown(POINTS)
        assert alt.data_transformers.active == "json"
    assert [len(rows) for rows in block["spec"]["datasets"].values()] == [6]
    assert list(tmp_path.iterdir()) == []


def test_vega_lite_is_taken_as_a_dict_and_from_whatever_has_to_dict() -> None:
    spec = {"mark": "bar", "data": {"values": [{"a": 1}]}}
    assert shown(spec)["spec"] == spec
    assert shown(type("Author", (), {"to_dict": lambda self: spec})())["spec"] == spec
    assert shown({"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "hconcat": [spec]})["type"] == "chart"


def test_a_chart_that_would_load_or_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="must carry its data with it"):
        shown(alt.Chart("https://example.org/data.csv").mark_point().encode(x="a:Q"))
    with pytest.raises(ValueError, match="of this Chart failed"):
        shown(alt.Chart(DATA).mark_point().encode(x="nowhere"))
    with pytest.raises(ValueError, match="which is Vega"):
        shown({"$schema": "https://vega.github.io/schema/vega/v5.json", "marks": []})


# ---- matplotlib ------------------------------------------------------------------------------------------------------


def drawing() -> tuple[Figure, Any]:
    figure = Figure(figsize=(4, 3))
    return figure, figure.subplots()


def pixels(block: dict[str, Any]) -> bytes:
    return base64.b64decode(block["data"])


def curve() -> Figure:
    figure, axes = drawing()
    axes.plot([0, 1, 2], [3.0, 1.0, 2.0], label="loss")
    axes.set(title="Descent", xlabel="step", ylabel="loss <L1>")
    axes.legend()
    return figure


def test_a_figure_is_an_svg_with_what_it_says_and_its_data() -> None:
    block = shown(curve(), caption="c")
    assert (block["type"], block["mime"], block["caption"]) == ("image", "image/svg+xml", "c")
    assert block["alternative"] == "Descent: loss <L1> by step"
    assert block["tables"] == [
        {
            "caption": "",
            "columns": ["series", "step", "loss <L1>"],
            "rows": [["loss", 0, 3.0], ["loss", 1, 1.0], ["loss", 2, 2.0]],
            "remark": "",
        }
    ]
    assert b"<text" not in pixels(block), "its text is outlines, which need no font"
    width, height = block["size"]
    assert 300 < width < 450
    assert 200 < height < 350
    assert shown(curve(), description="said")["alternative"] == "said"
    assert shown(drawing()[0], caption="named")["alternative"] == "named"


def test_the_same_figure_gives_the_same_bytes() -> None:
    figure = curve()
    assert shown(figure)["data"] == shown(figure)["data"] == shown(curve())["data"]


@pytest.mark.parametrize(("points", "layout", "mime"), [(9, "constrained", "svg+xml"), (20_000, None, "png")])
def test_a_figure_is_not_changed_and_stays_open(points: int, layout: Any, mime: str) -> None:
    """Neither by a drawing that is finished nor by one that is given up because it becomes too large."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 3), dpi=70, facecolor="pink", layout=layout)
    axes.scatter(*np.random.default_rng(0).random((2, points)))
    figure.canvas.draw()

    def state() -> list[Any]:
        sizes = [figure.get_size_inches().tolist(), figure.dpi, figure.bbox.bounds, figure.patch.get_bbox().bounds]
        owners = [figure.canvas, figure.get_layout_engine(), axes.get_axes_locator(), figure.get_facecolor()]
        return [*sizes, *owners, axes.get_xlim(), pyplot.get_fignums(), pyplot.gcf()]

    def drawn() -> bytes:
        figure.canvas.draw()
        return bytes(figure.canvas.buffer_rgba())

    before, image, settings = state(), drawn(), dict(matplotlib.rcParams)
    try:
        assert shown(figure)["mime"] == f"image/{mime}"
        assert state() == before
        assert (drawn() == image) is True
        assert dict(matplotlib.rcParams) == settings
    finally:
        pyplot.close(figure)


def test_an_axes_a_part_of_a_figure_and_a_grid_show_their_figure() -> None:
    figure = Figure()
    part = figure.subfigures(1, 2)[0]
    axes = part.subplots()
    axes.plot([1, 2])
    grid = type("Grid", (), {"figure": figure})()
    assert len({shown(each)["data"] for each in (figure, part, axes, grid)}) == 1


def test_the_data_of_dates_names_bars_points_and_images_are_told() -> None:
    figure = Figure()
    over_time, bars, lying, cloud = (axes for row in figure.subplots(2, 2) for axes in row)
    over_time.plot(np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"), [1, 2], label="t")
    over_time.axvline(0.5)
    bars.bar(["one", "two"], [3, 4])
    lying.barh(["x"], [5], label="lying")
    lying.set_title("lying")
    cloud.scatter([1, 2], [np.nan, 4])
    cloud.imshow([[1, 2], [3, 4]])
    points, grid = shown(figure)["tables"]
    assert points["columns"] == ["axes", "series", "x", "y"]
    assert points["rows"] == [
        ["axes 1", "t", "2020-01-01", 1],
        ["axes 1", "t", "2020-01-02", 2],
        ["axes 2", "bars 1", "one", 3],
        ["axes 2", "bars 1", "two", 4],
        ["lying", "lying", 5, "x"],
        ["axes 4", "points 1", None, None],
        ["axes 4", "points 1", 2, 4],
    ]
    assert (grid["caption"], grid["columns"]) == ("axes 4", ["row", "column 0", "column 1"])
    assert grid["rows"] == [[0, 1, 2], [1, 3, 4]]


def test_what_holds_no_data_is_said() -> None:
    figure, axes = drawing()
    axes.pie([1, 2])
    block = shown(figure)
    assert block["tables"] == []
    assert block["remark"] == "matplotlib does not tell the data of this drawing."
    axes.plot([1, 2])
    assert "lacks some" in shown(figure)["remark"]


def test_a_figure_of_very_many_points_is_kept_as_pixels_and_says_so() -> None:
    figure, axes = drawing()
    axes.scatter(*np.random.default_rng(0).random((2, 100_000)))
    block = shown(figure)
    assert block["mime"] == "image/png"
    assert len(block["data"]) < 1_500_000
    assert block["remark"].startswith("Kept as pixels")
    assert 300 < block["size"][0] < 450, "as large on a page as its SVG would be"
    assert len(block["tables"][0]["rows"]) * 3 <= MOST_CELLS + 3
    assert "of 100000 rows" in block["tables"][0]["remark"]


def test_hostile_labels_stay_text() -> None:
    figure, axes = drawing()
    named = [text for text in HOSTILE if text.isprintable() and text.strip()]
    for text in named:
        axes.plot([1, 2], label=text, gid=text)
    axes.set_title(HOSTILE[0])
    axes.legend()
    page = Page("t")
    page.show(figure)
    text = html_of(page)
    assert "<script>window.ranHostile" not in text
    assert "&lt;script&gt;window.ranHostile" in text
    assert {row[0] for row in page.blocks[0]["tables"][0]["rows"]} == set(named)


def test_a_figure_that_cannot_be_drawn_or_leads_somewhere_is_refused_with_a_sentence() -> None:
    figure, axes = drawing()
    axes.set_title("$\\frac{$")
    with pytest.raises(ValueError, match="matplotlib cannot draw this figure"):
        shown(figure)
    figure, axes = drawing()
    axes.plot([1, 2], url="javascript:alert(1)")
    with pytest.raises(ValueError, match="leads to 'javascript"):
        shown(figure)


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_only_a_page_with_a_picture_may_show_pictures_and_only_from_itself(kind: str) -> None:
    page = Page("t")
    page.prose("words")
    assert "img-src" not in policy_of(page)
    figure, axes = drawing()
    axes.plot([1, 2])
    if kind == "png":
        axes.scatter(*np.zeros((2, 20_000)))
    page.show(figure)
    assert "img-src data:;" in policy_of(page)
    assert f'src="data:{page.blocks[-1]["mime"]};base64,' in html_of(page)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
XML = "<?xml version='1.0'?>"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": encoded(f"{SVG}<script>1</script></svg>")}, "the element 'script'"),
        ({"data": encoded(f"{SVG}<foreignObject/></svg>")}, "the element 'foreignObject'"),
        ({"data": encoded(f"{SVG}<a xmlns='http://www.w3.org/1999/xhtml'/></svg>")}, "the element 'a'"),
        ({"data": encoded(f"{SVG}<set attributeName='href'/></svg>")}, "the element 'set'"),
        ({"data": encoded(f"{SVG}<g onload='1'/></svg>")}, "the attribute 'onload'"),
        ({"data": encoded(f"{SVG}<image xlink:href='http://example.org/a.png'/></svg>")}, "leads to 'http"),
        ({"data": encoded(f"{SVG}<use href='data:image/svg+xml;base64,AA'/></svg>")}, "leads to 'data"),
        ({"data": encoded(f"{SVG}<a href=' JavaScript:1'/></svg>")}, "leads to ' JavaScript"),
        ({"data": encoded(f"{SVG}<g style='fill: url(//example.org/a)'/></svg>")}, "its style is"),
        ({"data": encoded(f"{SVG}<g fill='u\\72l(//example.org/a)'/></svg>")}, "its fill is"),
        ({"data": encoded(f"{SVG}<style>@import '//example.org';</style></svg>")}, "loads nothing"),
        ({"data": encoded(f"{XML}<!DOCTYPE svg [<!ENTITY a 'b'>]>{SVG}</svg>")}, "no entities"),
        ({"data": encoded(f"{XML}<?xml-stylesheet href='//example.org'?>{SVG}</svg>")}, "no processing instr"),
        ({"data": encoded("<html><body/></html>")}, "its data are 'html'"),
        ({"data": encoded(f"{SVG}<g>")}, "not well-formed"),
        ({"data": base64.b64encode(f"{SVG}</svg>".encode("utf-16")).decode()}, "not UTF-8|is UTF-8"),
        ({"data": '"><script>1</script>'}, "are base64"),
        ({"data": None}, "are base64"),
        ({"mime": "text/html"}, "declared as 'text/html'"),
        ({"mime": 'image/png" onerror="1'}, "declared as"),
        ({"mime": "image/png"}, "declared as a PNG"),
        ({"size": [0, 10]}, "a width and a height"),
        ({"size": ["1", 10]}, "must be a number"),
        ({"tables": [{"columns": ["a"], "rows": [[1, 2]], "caption": "", "remark": ""}]}, "has 2 cells"),
        ({"tables": [{}]}, "malformed"),
        ({"style": "x"}, "malformed"),
    ],
)
def test_a_saved_page_cannot_bring_anything_but_a_picture(change: dict[str, Any], sentence: str) -> None:
    page = Page("t")
    page.show(curve())
    data = page.to_json()
    data["blocks"][0] |= change
    with pytest.raises(ValueError, match=sentence):
        Page.from_json(data)


# ---- HTML ------------------------------------------------------------------------------------------------------------


def test_html_is_shown_in_a_sandboxed_frame_with_its_style_allowed_by_hash() -> None:
    page = Page("t")
    page.show(of_html('<style>b { color: red }</style><b style="margin: 1px">bold</b>'), caption="c", description="d")
    (block,) = page.blocks
    assert block["type"] == "frame"
    assert block["html"] == '<style>b { color: red }</style><b style="margin: 1px">bold</b>'
    document = frame_document(block["html"])
    assert "style=" not in document.html
    assert "margin: 1px" in document.style
    from probekit.report import html

    assert html._hash(document.style) in policy_of(page).split("style-src")[1].split(";")[0]
    assert "'unsafe" not in policy_of(page)
    text = html_of(page)
    assert re.search(r'<iframe [^>]*sandbox="allow-same-origin" title="d" [^>]*srcdoc="&lt;!doctype', text)
    assert "<b " not in text


def test_a_page_without_frames_allows_one_style() -> None:
    assert policy_of(Page("t")).count("sha256-") == 2


@pytest.mark.parametrize(
    ("html", "cleaned"),
    [
        ("<p onclick='x()'>a</p>", "<p>a</p>"),
        ("<p ONCLICK=x()>a", "<p>a"),
        ("<script>alert(1)</script>a", "a"),
        ("<scr<script>ipt>alert(1)</script>a", "ipt&gt;alert(1)a"),
        ("<SCRIPT src=//example.org></SCRIPT >a", "a"),
        ("a<script>unclosed", "a"),
        ("<iframe srcdoc='<script>1</script>'><p>b</p></iframe>a", "a"),
        ("<object data=x><embed src=x></object>a<embed src=x>", "a"),
        ("<link rel=stylesheet href=x><meta http-equiv=refresh content='0;x'><base href=x>a", "a"),
        ("<form action=x><button formaction=x>b</button><input name=q></form>a", "ba"),
        ("<a href='javascript:1' target=_top>a</a>", "<a>a</a>"),
        ("<a href='https://example.org' title='t'>a</a>", '<a title="t">a</a>'),
        ("<img src=x onerror=1 alt='a &lt;b&gt;'>", "a &lt;b&gt;"),
        ('<img src="data:image/png;base64,AAAA" alt="a">', '<img src="data:image/png;base64,AAAA" alt="a">'),
        ("<img src='data:image/svg+xml;base64,AAAA'>a", "a"),
        ("<video src=x><source src=x></video><audio src=x></audio>a", "a"),
        ("<svg><script>1</script><circle r=5 onload=1 /><use href='//example.org/#a'/></svg>", None),
        ("<svg><use xlink:href='#a'></use></svg>", '<svg><use xlink:href="#a"></use></svg>'),
        ("<svg><foreignObject><p>a</p></foreignObject></svg>", "<svg><p>a</p></svg>"),
        ("<svg><a xlink:href='javascript:1'><animate attributeName=href values='javascript:1'/>a</a></svg>", None),
        ("<rect fill='url(//example.org/a)'/>a", "<rect></rect>a"),
        ("<!--[if IE]><script>1</script><![endif]-->a<!-- b -->", "a"),
        ("<?php x ?>a<![CDATA[b]]>", None),
        ("<math><mtext><style><img src=x onerror=1></style></mtext></math>a", None),
        ("</style><p>a</p></body></html>", "<p>a</p>"),
        ("<input type=checkbox id=a checked><label for=a>a</label>", None),
        ("<input type=image src=x>a<input type=submit>", "a"),
        ("<template><p>b</p></template><textarea></textarea><select><option>b</select>a", "a"),
        ("<table background=x bgcolor=red><td ping=x srcset=x formaction=x>a", '<table bgcolor="red"><td>a'),
        ("a\u202eb\x00\ud800&#x202e;", "a⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩⟨U+202E⟩"),
        ("&lt;script&gt;1&lt;/script&gt;", "&lt;script&gt;1&lt;/script&gt;"),
        ("<p style='color: red'>a</p>", '<p style="color: red">a</p>'),
        ("<p style='background: url(//example.org/a)'>a</p>", '<p style="background: none">a</p>'),
        ("<p style='x: 1} * {color: red'>a</p>", "<p>a</p>"),
        ("<p style='color: rgb(1'>a</p>", "<p>a</p>"),
        ("<p style='color: red /*'>a</p>", "<p>a</p>"),
        ("<p style='width: expression(1)'>a</p>", "<p>a</p>"),
        ("<p style='color: red' style='color: blue'>a</p>", '<p style="color: red">a</p>'),
    ],
)
def test_only_what_neither_runs_nor_loads_is_kept(html: str, cleaned: str | None) -> None:
    found = cleaned_html(html).html
    assert cleaned is None or found == cleaned
    assert not re.search(r"<script|\son\w+=|javascript:|example\.org|<img src=.x|<foreign|<math|<animate", found)
    assert cleaned_html(found).html == found, "what is clean stays as it is"
    assert "style=" not in frame_document(found).html


@pytest.mark.parametrize(
    "style",
    [
        "@import url(//example.org/a.css);",
        '@import "//example.org/a.css" screen;',
        "@IMPORT '//example.org/a;b.css';",
        "a { background: URL( '//example.org/a.png' ) }",
        'a { background: image-set("//example.org/a.png" 1x) }',
        "a { background: -webkit-image-set(url(//example.org/a.png) 1x) }",
        "a { background: u\\72l(//example.org/a.png) }",
        "a { background: \\75 rl(//example.org/a.png) }",
        "@\\69mport '//example.org/a.css';",
        "@font-face { font-family: a; src: url(//example.org/a.woff) }",
        'a { background: url("//example.org/a.png',
        "a { background: url(//example.org/'a.png) }",
        "a { -moz-binding: url(//example.org/a) }",
        "a { background: src('//example.org/a.png') }",
    ],
)
def test_a_style_sheet_keeps_nothing_that_loads(style: str) -> None:
    kept = cleaned_html(f"<style>{style}</style><p>a</p>").html
    assert "example.org" not in kept.replace("url(", "") or not re.search(r"url\(|import|image-set|src\(", kept)
    assert not re.search(r"example\.org", kept)
    assert kept.endswith("<p>a</p>")


def test_a_harmless_style_sheet_is_kept_as_it_is() -> None:
    style = '#T_1 td:hover > b { color: rgb(1, 2, 3) } @media (width > 3px) { p::before { content: "\\25b8 " } }'
    assert cleaned_html(f"<style type='text/css'>{style}</style>a").html == f"<style>{style}</style>a"


@pytest.mark.parametrize("html", ["<![foo[bar]]>after", "<![ >after", "<![CDATA[x]]>after"])
def test_what_opens_like_a_marked_section_is_a_comment_as_in_a_browser(html: str) -> None:
    assert cleaned_html(html).html == "after"


def test_what_had_to_go_is_said() -> None:
    block = shown(of_html("a<script>1</script><script>2</script><img src=x><b onclick=1>b</b>"))
    assert block["remark"] == (
        "Left out, because nothing in a report runs or loads: 2 scripts, 1 handler, 1 picture from elsewhere."
    ) or sorted(re.findall(r"\d \w+", block["remark"])) == ["1 handler", "1 picture", "2 scripts"]


def test_a_picture_in_html_is_allowed_by_the_policy() -> None:
    page = Page("t")
    page.show(of_html('<img src="data:image/png;base64,AAAA" alt="a">'))
    assert "img-src data:;" in policy_of(page)


def test_a_saved_page_cannot_bring_html_that_was_not_cleaned() -> None:
    page = Page("t")
    page.show(of_html("<p>a</p>"))
    data = page.to_json()
    data["blocks"][0]["html"] = "<p onclick=1>a</p><script>1</script><a href='javascript:1'>b</a>"
    read = Page.from_json(data)
    assert read.blocks[0]["html"] == "<p>a</p><a>b</a>"
    assert "1 script" in read.blocks[0]["remark"]
    for change in ({"html": 5}, {"html": None}, {"sandbox": "allow-scripts"}):
        broken = copy.deepcopy(data)
        broken["blocks"][0] |= change
        with pytest.raises(ValueError, match="malformed"):
            Page.from_json(broken)


def test_html_of_a_frames_styler_keeps_its_look() -> None:
    styler = pd.DataFrame({"a": [1, 2]}).style.set_properties(**{"color": "rgb(1, 2, 3)"})
    block = shown(of_html(styler.to_html()))
    assert "rgb(1, 2, 3)" in block["html"]
    assert block["remark"] == ""


def test_html_may_come_with_metadata() -> None:
    assert shown(of_html(("<p>a</p>", {"isolated": True})))["html"] == "<p>a</p>"


# ---- everything else -------------------------------------------------------------------------------------------------


class AnswersToAnything:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: self


@pytest.mark.parametrize(
    ("obj", "sentence"),
    [
        (None, "this one is a NoneType"),
        ("text", "Text goes into page.prose"),
        ({"a": 1}, "this one is a dict"),
        ([curve()], "a list. Show its items one by one"),
        (np.zeros(3), "a ndarray. Show its items one by one"),
        (AnswersToAnything(), "this one is a AnswersToAnything"),
        (pd.DataFrame, "this one is a type"),
        (type("Settings", (), {"to_dict": lambda self: {"a": 1}})(), "this one is a Settings"),
        (of_html(None), "this one is a Author"),
        (of_html("<script>draw()</script><div id='plot'></div>"), "shows nothing without its scripts"),
        (
            type("Broken", (), {"_repr_html_": lambda self: 1 / 0})(),
            "_repr_html_.. of this Broken failed: ZeroDivision",
        ),
        (type("Broken", (), {"to_dict": lambda self: 1 / 0})(), "to_dict.. of this Broken failed"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_a_sentence_and_adds_nothing(obj: object, sentence: str) -> None:
    page = Page("t")
    with pytest.raises(ValueError, match=sentence):
        page.show(obj)
    assert page.blocks == []


def test_the_artists_of_a_plot_are_refused_but_their_figure_is_named_as_the_way() -> None:
    figure, axes = drawing()
    lines = axes.plot([1, 2])
    for obj in (lines, lines[0], (figure, axes)):
        with pytest.raises(ValueError, match="a matplotlib figure or axes"):
            Page("t").show(obj)


def test_html_is_taken_where_to_dict_is_something_else() -> None:
    author = type("Frame", (), {"to_dict": lambda self: {"mark": [1, 2]}, "_repr_html_": lambda self: "<p>a</p>"})()
    assert shown(author)["type"] == "frame"
    broken = type("Frame", (), {"to_dict": lambda self, way: {}, "_repr_html_": lambda self: "<p>a</p>"})()
    assert shown(broken)["type"] == "frame"


def test_the_report_room_imports_none_of_these_libraries() -> None:
    code = (
        "import sys\nfrom probekit.report import Page\n"
        "class Shown:\n    def _repr_html_(self): return '<b>a</b>'\n"
        "Page('t').show(Shown())\nPage('t').show({'mark': 'bar'})\n"
        "print(sorted({'pandas', 'matplotlib', 'altair', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
