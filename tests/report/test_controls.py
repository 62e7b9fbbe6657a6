"""What a reader does with a report: step through tokens, search and sort tables, save charts and their data."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from probekit.report import Document, Page, Token, TokenRow, render_html
from tests.report.reading import Reader, chromium

pytestmark = pytest.mark.chromium

HOSTILE = ["</script>", '"><img src=x onerror=alert(1)>', "\u202egnp", "\x00", "🙂", "", " ", "\n"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def read(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """`read(page, …)`: the page in a report, open in the browser; at the end it has complained about nothing."""
    readers: list[Reader] = []

    def open_one(page: Page, **context: Any) -> Reader:
        path = tmp_path / "report.html"
        path.write_text(render_html(Document("Title", "Question?", pages=[("analysis", page)])), encoding="utf-8")
        readers.append(Reader(browser, path, **context))
        return readers[-1]

    yield open_one
    for reader in readers:
        assert reader.complaints == []
        assert reader.page.evaluate("violations") == []
        reader.context.close()


def row(step: int, texts: list[str]) -> TokenRow:
    tokens = [
        Token(text, mark="right" if place < step else "wrong", title=f"position {place}, step {step}")
        for place, text in enumerate(texts)
    ]
    return TokenRow(f"step {step}", tokens, note=f"loss {10 - step}")


# ---- trajectories ------------------------------------------------------------------------------------------------


def trajectory_page() -> Page:
    page = Page("Trajectory")
    walked = [row(step, [HOSTILE[(place + step) % 8] for place in range(4)]) for step in range(6)]
    page.trajectory(
        {"long": walked, "short": [row(0, ["a"]), row(1, ["b", "c", "d"])]},
        reference=TokenRow("prompt", [Token("the")]),
        caption="Walk",
        marks={"right": "kept", "wrong": "left"},
    )
    return page


def shown(reader: Reader, place: int) -> list[str]:
    """The texts of one row under the slider."""
    cells = reader.page.locator(".steps-view tr").nth(place).locator(".token")
    return [text.removeprefix("left: ") for text in cells.all_text_contents()]


def test_the_slider_shows_the_tokens_of_each_step_and_arrow_keys_move_it(read: Any) -> None:
    reader = read(trajectory_page())
    slider = reader.page.get_by_role("slider", name="Step")
    assert slider.get_attribute("aria-valuetext") == "step 5"
    assert shown(reader, 1) == ["∅", "·", "↵", "</script>"]
    assert shown(reader, 2) == ["b", "c", "d"]
    slider.focus()
    reader.page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "step 0"
    assert reader.page.locator("output").inner_text() == "step 0"
    assert shown(reader, 0) == ["the"], "the reference stays"
    assert shown(reader, 1) == ["</script>", '"><img src=x onerror=alert(1)>', "⟨U+202E⟩gnp", "⟨U+0000⟩"]
    assert shown(reader, 2) == ["a", "", ""], "a shorter row leaves the rest empty"
    assert reader.page.locator(".steps-view .note-cell").all_inner_texts() == ["", "loss 10", "loss 10"]
    reader.page.keyboard.press("ArrowRight")
    reader.page.keyboard.press("ArrowRight")
    assert shown(reader, 1)[0] == "⟨U+202E⟩gnp"
    assert shown(reader, 2) == ["b", "c", "d"], "a series that ended stays at its last row"
    classes = (
        reader.page.locator(".steps-view tr")
        .nth(1)
        .locator(".token")
        .evaluate_all("(cells) => cells.map((cell) => cell.className)")
    )
    assert classes == ["token right", "token right", "token wrong", "token wrong"]


def test_tokens_under_the_slider_say_what_they_are_at_that_step(read: Any) -> None:
    reader = read(trajectory_page())
    reader.page.get_by_role("slider").focus()
    reader.page.keyboard.press("Home")
    reader.page.keyboard.press("Tab")
    assert reader.page.locator("#tip").inner_text() == "position 0, step 0"
    reader.page.keyboard.press("ArrowRight")
    assert reader.page.locator("#tip").inner_text() == "position 1, step 0"


@pytest.mark.parametrize("steps", [1, 150_000])
def test_one_step_or_very_many_leave_the_rest_of_the_page_alive(read: Any, steps: int) -> None:
    page = Page("t")
    page.trajectory({"a": [TokenRow(f"step {step}", [Token("a")]) for step in range(steps)]})
    page.table(["name"], [["a"], ["b"]], interactive=True)
    reader = read(page)
    assert reader.page.get_by_role("slider").count() == (steps > 1)
    assert reader.page.get_by_role("button", name="name").count() == 1


def test_every_step_of_one_series_stands_below_the_slider_without_javascript_too(read: Any, browser: Any) -> None:
    reader = read(trajectory_page())
    reader.page.locator("details.steps summary").click()
    labels = reader.page.locator("details.steps th").all_inner_texts()
    assert labels == [f"step {step}" for step in range(6)]


# ---- tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(read: Any) -> Any:
    page = Page("Runs")
    rows: list[list[Any]] = [
        ["walk </script>", 0.5, "b"],
        ["invert", -12.0, "a10"],
        ["audit", None, "a9"],
        ["x", 3e-9, ""],
    ]
    page.table(["name", "loss", "tag"], rows, interactive=True, targets=["a/report.html", None, None, None])
    return read(page)


def column(reader: Reader, place: int) -> list[str]:
    cells = reader.page.locator(f"table.data tbody tr:not([hidden]) > :nth-child({place + 1})")
    return [str(text) for text in cells.all_inner_texts()]


def test_a_heading_sorts_up_and_down_and_what_has_no_figure_stays_last(table: Reader) -> None:
    heading = table.page.get_by_role("button", name="loss")
    heading.focus()
    table.page.keyboard.press("Enter")
    assert column(table, 0) == ["invert", "x", "walk </script>", "audit"]
    assert table.page.get_by_role("columnheader", name="loss").get_attribute("aria-sort") == "ascending"
    table.page.keyboard.press("Space")
    assert column(table, 0) == ["walk </script>", "x", "invert", "audit"]
    table.page.get_by_role("button", name="tag").click()
    assert column(table, 2) == ["", "a9", "a10", "b"]
    assert table.page.locator("th[aria-sort]").count() == 1


def test_searching_keeps_the_rows_that_have_all_words(table: Reader) -> None:
    field = table.page.get_by_role("searchbox", name="Search")
    field.fill("WALK  script")
    assert column(table, 0) == ["walk </script>"]
    assert table.page.locator(".find [role=status]").inner_text() == "1 of 4 rows"
    table.page.get_by_role("button", name="loss").click()
    assert column(table, 0) == ["walk </script>"], "sorting does not bring rows back"
    field.fill("")
    assert len(column(table, 0)) == 4
    assert table.page.locator("table.data a").get_attribute("href") == "a/report.html"


# ---- saving ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def charts() -> Page:
    page = Page("Charts")
    page.lines({'a "quoted", one': [(0, 1 / 3), (1, 2e-5)], "b": [(0, None), (2, -3)]}, x="step", caption="Loss, L2")
    page.heatmap([[0.5, None], [1, 0]], ["the", "the"], ["block.0", "block.1"], value="score", caption="Where")
    encoding = {"x": {"field": "n", "type": "quantitative"}, "y": {"field": "who", "type": "nominal"}}
    records = [{"who": "x", "n": 1}, {"who": "=1+1", "n": 2.5, "more": [1, 2]}]
    page.chart({"mark": "bar", "data": {"values": records}, "encoding": encoding}, caption="Foreign")
    page.chart({"data": {"sequence": {"start": 0, "stop": 3}}, "mark": "point", "encoding": {"x": {"field": "data"}}})
    return page


def saved(reader: Reader, chart: int, kind: str) -> tuple[str, bytes]:
    button = reader.page.locator(".saves").nth(chart).get_by_role("button", name=kind, exact=True)
    button.scroll_into_view_if_needed()
    with reader.page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_the_data_of_a_chart_are_saved_as_csv_and_json(read: Any, charts: Page) -> None:
    reader = read(charts, accept_downloads=True)
    name, content = saved(reader, 0, "CSV")
    assert name == "analysis-01-loss-l2.csv"
    assert list(csv.reader(io.StringIO(content.decode()))) == [
        ["series", "step", "loss"],
        ['a "quoted", one', "0", "0.3333333"],
        ['a "quoted", one', "1", "0.00002"],
        ["b", "0", ""],
        ["b", "2", "-3"],
    ]
    assert json.loads(saved(reader, 1, "JSON")[1]) == [
        {"block": "block.0", "position": "the", "score": 0.5},
        {"block": "block.1", "position": "the", "score": 1},
        {"block": "block.1", "position": "the₂", "score": 0},
    ]
    assert list(csv.reader(io.StringIO(saved(reader, 2, "CSV")[1].decode()))) == [
        ["who", "n", "more"],
        ["x", "1", ""],
        ["=1+1", "2.5", "[1,2]"],
    ]
    assert reader.page.locator(".saves").nth(3).get_by_role("button").all_inner_texts() == ["SVG", "PNG"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_chart_is_saved_as_a_figure_with_its_legend_on_white_in_any_theme(
    read: Any, charts: Page, scheme: str
) -> None:
    reader = read(charts, accept_downloads=True, color_scheme=scheme)
    name, content = saved(reader, 0, "SVG")
    assert name == "analysis-01-loss-l2.svg"
    drawing = ET.fromstring(content)
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss", "step", "b", 'a "quoted", one'} <= set(texts)
    assert b'fill="white"' in content
    assert b"#1c2126" in content, "the ink of the light theme"
    assert saved(reader, 1, "PNG")[1].startswith(b"\x89PNG\r\n")
    assert reader.page.locator(".drawing").count() == 0
    assert reader.page.locator(".saves [role=status]").nth(1).inner_text() == "Saved analysis-02-where.png"


def test_a_picture_and_its_data_are_saved_too(read: Any) -> None:
    figure = Figure(figsize=(3, 2))
    left, right = figure.subplots(1, 2)
    left.plot([1, 2], [0.5, -3])
    right.imshow([[7, 8]])
    page = Page("Picture")
    page.show(figure, caption="Two axes")
    reader = read(page, accept_downloads=True)
    name, content = saved(reader, 0, "SVG")
    assert name == "analysis-01-two-axes.svg"
    assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    pixels = saved(reader, 0, "PNG")[1]
    assert pixels.startswith(b"\x89PNG\r\n")
    width = int.from_bytes(pixels[16:20], "big")
    assert width == 3 * reader.page.locator("img").evaluate("(image) => image.width")
    downloads: list[Any] = []
    reader.page.on("download", lambda download: downloads.append(download))
    reader.page.get_by_role("button", name="CSV").click()
    reader.page.get_by_text("Saved analysis-01-two-axes-1.csv, analysis-01-two-axes-2.csv").wait_for()
    reader.page.wait_for_timeout(300)
    tables = [Path(download.path()).read_text() for download in downloads]
    assert [line.split(",")[2:] for line in tables[0].splitlines()[1:]] == [["1", "0.5"], ["2", "-3"]]
    assert tables[1].splitlines()[1].endswith("7,8")


@pytest.mark.parametrize(("x", "y"), [("loss", "loss"), ("constructor", "__proto__")])
def test_data_are_saved_whole_whatever_their_columns_are_called(read: Any, x: str, y: str) -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.plot([1, 2], [0.5, -3])
    axes.set(xlabel=x, ylabel=y)
    page = Page("Picture")
    page.show(figure)
    records = [{"b": 1}, {x: 2}]
    page.chart({"mark": "point", "data": {"values": records}, "encoding": {"x": {"field": "b", "type": "nominal"}}})
    reader = read(page, accept_downloads=True)
    assert [line.split(",")[1:] for line in saved(reader, 0, "CSV")[1].decode().splitlines()[1:]] == [
        ["1", "0.5"],
        ["2", "-3"],
    ]
    assert saved(reader, 1, "CSV")[1].decode() == f"b,{x}\n1,\n,2\n"


def test_what_cannot_be_saved_is_said_and_leaves_nothing_behind(read: Any) -> None:
    page = Page("t")
    names = [str(row) for row in range(3000)]
    page.heatmap([[float(row)] for row in range(3000)], ["a"], names, caption="Higher than a canvas")
    page.chart({"mark": "none-such", "data": {"values": [{"a": 1}]}}, caption="No chart")
    reader = read(page)
    for place, kind, reason in ((0, "PNG", "it has more pixels than this browser draws"), (1, "SVG", "")):
        tools = reader.page.locator(".saves").nth(place)
        tools.get_by_role("button", name=kind).click()
        tools.get_by_text(f"This could not be saved: {reason}").wait_for()
        assert reader.page.locator(".drawing").count() == 0
