"""Objects of other libraries in a report, as a real browser shows them: nothing runs, loads or complains."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from probekit.report import Document, Page, render_html
from tests.report.reading import CHARTS, Reader, chromium
from tests.report.test_objects import CHARTS as ALTAIR

pytestmark = pytest.mark.chromium

LINES = "line\n" * 25
HTML = f"""
<style>@import url(https://example.org/a.css);
#T td {{ color: rgb(0, 128, 0) }} .far {{ background: url(https://example.org/b.png) }}</style>
<p id="styled" style="color: rgb(200, 0, 0)" onclick="parent.ranHostile = 1">styled <a href="https://example.org">a</a></p>
<script>parent.ranHostile = 1</script><img src="https://example.org/c.png" onerror="parent.ranHostile = 1" alt="far">
<iframe src="https://example.org/d"></iframe><object data="https://example.org/e"></object><link href="https://example.org">
<table id="T"><tr><td id="green">green<td id="own" style="color: rgb(0, 0, 255)">own</table>
<details><summary>more</summary><pre>{LINES}</pre></details>
<svg width="50" height="50" viewBox="0 0 10 10"><defs><circle id="dot" r="4"/></defs>
<use href="#dot" x="5" y="5" fill="red" onload="parent.ranHostile = 1"/></svg>
<img src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7" alt="dot">
"""
INSIDE = "document.querySelector('iframe.frame').contentDocument"


class Author:
    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return self.html


def figure(points: int = 50) -> Figure:
    drawing = Figure(figsize=(9, 4))
    one, other = drawing.subplots(1, 2)
    one.plot([1, 3, 2], label="a")
    one.legend()
    other.scatter(*np.random.default_rng(0).random((2, points)))
    return drawing


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def read(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    readers: list[Reader] = []

    def open_page(page: Page, **context: Any) -> Reader:
        path = tmp_path / f"{len(readers)}.html"
        path.write_text(render_html(Document("t", "q", pages=[("name", page)])), encoding="utf-8")
        readers.append(Reader(browser, path, **context))
        return readers[-1]

    yield open_page
    for reader in readers:
        reader.context.close()


def of(*objects: object) -> Page:
    page = Page("t")
    for shown in objects:
        page.show(shown, caption="c")
    return page


def assert_silent(reader: Reader) -> None:
    assert len(reader.requests) == len([url for url in reader.requests if url.startswith(("file:", "data:"))])
    assert [url for url in reader.requests if not url.startswith("data:")] == reader.requests[:1]
    assert reader.complaints == []
    everywhere = "[window, ...frames].map((each) => each.violations ?? []).flat()"
    assert reader.page.evaluate(everywhere.replace("...frames", "...Array.from(frames)")) == []
    assert reader.page.evaluate("window.ranHostile ?? null") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_every_kind_of_object_is_shown_without_a_request_or_a_complaint(
    read: Callable[..., Reader], scheme: str, width: int
) -> None:
    frame = pd.DataFrame({"a": range(60), "b": ["<script>window.ranHostile = 1</script>"] * 60})
    page = of(*ALTAIR.values(), frame, figure(), figure(30_000), Author(HTML))
    reader = read(page, color_scheme=scheme, viewport={"width": width, "height": 900})
    charts = reader.page.evaluate(CHARTS)
    assert len(charts) == len(ALTAIR)
    assert all(drawn == scheme and across > 60 and high > 40 for drawn, across, high in charts), charts
    pictures = "[...document.images].map((image) => [image.naturalWidth > 0, image.width, image.height])"
    assert [
        loaded and 200 < across < width and high > 100 for loaded, across, high in reader.page.evaluate(pictures)
    ] == [
        True,
        True,
    ]
    paper = "getComputedStyle(document.querySelector({!r})).backgroundColor"
    for card in (".picture", "iframe.frame"):
        assert reader.page.evaluate(paper.format(card)) == "rgb(255, 255, 255)"
    assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert_silent(reader)


def test_a_chart_with_its_own_background_keeps_its_own_colours(read: Callable[..., Reader]) -> None:
    """Black on its white, and not the dark theme's pale ink."""
    reader = read(of(ALTAIR["configured"], ALTAIR["one"]), color_scheme="dark")
    stages = "[...document.querySelectorAll('.stage:not(.paper)')]"
    inks = f"{stages}.map((stage) => stage.querySelector('.role-axis-title text').getAttribute('fill'))"
    assert reader.page.evaluate(inks) == ["#000", "#e6e9ec"]


def test_html_keeps_its_look_and_is_as_high_as_what_it_holds(read: Callable[..., Reader]) -> None:
    reader = read(of(Author(HTML)))
    colour = "getComputedStyle({}.getElementById('{}')).color"
    colours = [reader.page.evaluate(colour.format(INSIDE, name)) for name in ("styled", "green", "own")]
    assert colours == ["rgb(200, 0, 0)", "rgb(0, 128, 0)", "rgb(0, 0, 255)"]
    fits = f"{INSIDE}.documentElement.scrollHeight <= document.querySelector('iframe.frame').clientHeight"
    height = "document.querySelector('iframe.frame').offsetHeight"
    reader.wait_for(fits)
    folded = reader.page.evaluate(height)
    assert folded < 350
    reader.page.frame_locator("iframe.frame").locator("summary").click()
    reader.wait_for(f"{height} > {folded} + 300 && {fits}")
    reader.page.frame_locator("iframe.frame").locator("#styled").click()
    assert_silent(reader)


def test_a_frame_is_reached_by_the_keyboard_and_named(read: Callable[..., Reader]) -> None:
    page = Page("t")
    page.show(Author("<p>line</p>" * 100), description="A hundred lines")
    reader = read(page, viewport={"width": 800, "height": 600})
    focused = "document.activeElement?.title ?? ''"
    for _ in range(10):
        reader.page.keyboard.press("Tab")
        if reader.page.evaluate(focused):
            break
    assert reader.page.evaluate(focused) == "A hundred lines"
    scrolled = f"{INSIDE}.documentElement.scrollTop"
    assert reader.page.evaluate(scrolled) == 0
    reader.page.keyboard.press("End")
    reader.wait_for(f"{scrolled} > 100")
    reader.page.keyboard.press("Tab")
    assert reader.page.evaluate(focused) == "", "and left again"


def test_html_that_was_not_cleaned_would_not_run_either(read: Callable[..., Reader]) -> None:
    """The sandbox and the policy hold without the cleaning, which a test can only show by going round it."""
    page = of(Author("<p>a</p>"))
    page.blocks[0]["html"] = HTML + "<svg onload='parent.ranHostile = 1'></svg>"
    reader = read(page)
    reader.page.frame_locator("iframe.frame").locator("#styled").click()
    reader.page.wait_for_timeout(200)
    assert reader.page.evaluate("window.ranHostile ?? null") is None
    asked = [url for url in reader.requests if "example.org" in url]
    assert [(url, "csp") for url in asked] == reader.failures, "none of them left the browser"


def test_a_script_in_a_picture_does_not_run(read: Callable[..., Reader]) -> None:
    """Saved pages with such a picture are refused; this one goes round that."""
    page = of(figure())
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200" onload="parent.ranHostile = 1">'
        '<script>parent.ranHostile = 1; fetch("https://example.org")</script>'
        '<image href="https://example.org/a.png" width="9" height="9"/>'
        '<rect style="fill: red" width="9" height="9"/></svg>'
    )
    page.blocks[0]["data"] = base64.b64encode(drawing.encode()).decode()
    reader = read(page)
    reader.wait_for("document.images[0].complete")
    assert reader.page.evaluate("document.images[0].naturalWidth") == 300
    assert_silent(reader)


def test_without_javascript_frames_and_pictures_are_there(read: Callable[..., Reader]) -> None:
    reader = read(of(figure(), Author(HTML)), java_script_enabled=False)
    assert reader.page.frame_locator("iframe.frame").locator("#styled").is_visible()
    assert reader.page.locator("iframe.frame").bounding_box()["height"] > 200
    assert reader.page.locator(".picture img").bounding_box()["height"] > 200


def test_on_paper_a_frame_is_as_high_as_its_narrower_text(read: Callable[..., Reader]) -> None:
    reader = read(of(figure(), Author("<p>" + "word " * 600 + "</p>")), viewport={"width": 1400, "height": 900})
    height = "document.querySelector('iframe.frame').offsetHeight"
    fits = f"{INSIDE}.documentElement.scrollHeight <= document.querySelector('iframe.frame').clientHeight"
    on_screen = reader.page.evaluate(height)
    reader.page.emulate_media(media="print")
    reader.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert reader.page.evaluate(height) > 1.3 * on_screen
    assert reader.page.evaluate(fits)
    assert reader.page.pdf().startswith(b"%PDF")
    reader.page.emulate_media(media="screen")
    reader.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert reader.page.evaluate(height) == on_screen
    assert_silent(reader)
