"""A report in a real browser: it asks for nothing, runs nothing but its own scripts, and can be read and used."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probekit.report import Document, Page, render_html
from tests.report.reading import CHARTS, Reader, chromium

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def path(document: Document, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_html(document), encoding="utf-8")
    return path


@pytest.fixture
def open_report(browser: Any, path: Path) -> Iterator[Any]:
    readers: list[Reader] = []

    def open_one(**context: Any) -> Reader:
        readers.append(Reader(browser, path, **context))
        return readers[-1]

    yield open_one
    for reader in readers:
        reader.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1400])
def test_a_report_draws_its_charts_and_asks_for_nothing(open_report: Any, path: Path, scheme: str, width: int) -> None:
    reader = open_report(color_scheme=scheme, viewport={"width": width, "height": 900})
    charts = reader.page.evaluate(CHARTS)
    assert len(charts) == 5
    assert all(drawn == scheme and chart_width > 200 and height > 40 for drawn, chart_width, height in charts), charts
    reader.page.mouse.wheel(0, 20_000)
    assert reader.requests == [path.as_uri()]
    assert reader.complaints == []
    assert reader.page.evaluate("violations") == []
    assert reader.page.evaluate("window.ranHostile") is None
    assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_charts_follow_the_theme_when_it_changes(open_report: Any) -> None:
    reader = open_report(color_scheme="light")
    ink = "getComputedStyle(document.body).color + document.querySelector('[data-chart] svg text').getAttribute('fill')"
    light = reader.page.evaluate(ink)
    reader.page.emulate_media(color_scheme="dark")
    reader.wait_for_charts("dark")
    assert reader.page.evaluate(ink) != light
    assert reader.complaints == []


def test_charts_fit_a_window_that_becomes_narrow(open_report: Any) -> None:
    reader = open_report(viewport={"width": 1400, "height": 900})
    reader.page.set_viewport_size({"width": 380, "height": 900})
    reader.wait_for("document.querySelector('[data-chart] svg').getBoundingClientRect().width <= 380")
    assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_hostile_tokens_are_there_to_be_read(open_report: Any) -> None:
    shown = open_report().page.locator(".aligned .token").all_inner_texts()
    for text in (
        "</script><script>window.ranHostile",
        "⟨U+202E⟩gnp.exe",
        "⟨U+0000⟩",
        "⟨U+D800⟩",
        "{{ 7*7 }}",
        "∅",
        "↵",
    ):
        assert any(text in token for token in shown), text


def test_arrow_keys_walk_the_tokens_and_tab_leaves_the_row(open_report: Any) -> None:
    page = open_report().page
    page.locator(".aligned .token").first.focus()
    focused = "document.activeElement.dataset.tip?.split(' ')[1]"
    rows = "[...document.querySelectorAll('.aligned tr')].indexOf(document.activeElement.closest('tr'))"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "2"
    assert page.locator("#tip").inner_text().startswith("position 2")
    assert page.locator("#tip").is_visible()
    page.keyboard.press("ArrowDown")
    assert (page.evaluate(focused), page.evaluate(rows)) == ("2", 1)
    page.keyboard.press("End")
    assert page.evaluate(focused) == "16"
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate(rows) == 2
    page.keyboard.press("Tab")
    assert page.evaluate(rows) == -1
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert (page.evaluate(focused), page.evaluate(rows)) == ("16", 1)


def test_pointing_at_a_chart_shows_its_figures_as_text(open_report: Any) -> None:
    reader = open_report(viewport={"width": 1000, "height": 900})
    chart = reader.page.locator("[data-chart]").nth(3)
    chart.scroll_into_view_if_needed()
    reader.page.wait_for_timeout(100)
    # Twice, because the scroll that brought the chart into view also hides a tip.
    chart.locator(".mark-rect path").nth(20).hover()
    chart.locator(".mark-rect path").nth(21).hover()
    reader.page.wait_for_selector("#tip:not([hidden])")
    assert "ranHostile" in reader.page.locator("#tip").inner_text()
    assert reader.page.evaluate("[violations.length, window.ranHostile ?? null]") == [0, None]
    assert reader.complaints == []


def test_pointing_near_a_line_names_its_series_and_shows_its_figures(open_report: Any) -> None:
    reader = open_report(viewport={"width": 1000, "height": 900})
    chart = reader.page.locator("[data-chart]").nth(1)
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    reader.page.wait_for_timeout(100)
    reader.page.mouse.move(box["x"] + 500, box["y"] + 150)
    reader.page.mouse.move(box["x"] + 505, box["y"] + 150)
    reader.page.wait_for_selector("#tip:not([hidden])")
    lines = reader.page.locator("#tip").inner_text().splitlines()
    assert [re.sub(r"\d+$", "#", line) for line in lines] == ["series block #", "step #", "loss #"]


@pytest.mark.parametrize("permitted", [True, False])
def test_the_command_is_copied_or_selected(open_report: Any, permitted: bool) -> None:
    reader = open_report(permissions=["clipboard-read", "clipboard-write"] if permitted else [])
    command = reader.page.locator("#command").inner_text()
    if not permitted:
        reader.page.evaluate(
            "navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => false"
        )
    reader.page.get_by_role("button", name="Copy").click()
    status = reader.page.locator("[role=status]")
    status.filter(has_text="Copied" if permitted else "press Ctrl+C").wait_for()
    got = "navigator.clipboard.readText()" if permitted else "getSelection().toString()"
    assert reader.page.evaluate(got).strip() == command.strip()


def test_without_javascript_everything_but_the_drawings_is_there(open_report: Any) -> None:
    page = open_report(java_script_enabled=False).page
    assert page.get_by_text("This chart is drawn by JavaScript").count() == 5
    assert page.locator(".data-of-chart").count() == 5
    assert page.get_by_role("button", name="Copy").count() == 0
    assert page.locator("#overview .finding").first.is_visible()


def test_paper_is_light_and_complete_even_for_a_reader_in_the_dark(open_report: Any) -> None:
    reader = open_report(color_scheme="dark", viewport={"width": 720, "height": 900})
    reader.page.emulate_media(media="print", color_scheme="dark")
    reader.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    stages = "[...document.querySelectorAll('.stage')].filter((stage) => stage.offsetHeight)"
    assert reader.page.evaluate(f"{stages}.map((stage) => stage.classList.contains('paper'))") == [True] * 5
    assert reader.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert reader.page.locator("details.fold:not([open])").count() == 0
    reader.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert reader.page.locator("details.fold[open]").count() == 0


def test_a_link_opens_the_report_beside_by_mouse_and_by_keyboard(browser: Any, tmp_path: Path) -> None:
    """As a study's report does those of its cells; nothing is asked for until the link is followed."""
    cell, page = tmp_path / "cells" / "0a1b" / "report.html", Page("Cells")
    page.links([("inverter (block 0, seed 0)", "cells/0a1b/report.html"), ("a long name " * 200, "b.html")], "Reports")
    cell.parent.mkdir(parents=True)
    cell.write_text(render_html(Document("A cell", "q", pages=[("one", Page("one"))])), encoding="utf-8")
    path = tmp_path / "report.html"
    path.write_text(render_html(Document("A study", "q", pages=[("Cells", page)])), encoding="utf-8")
    reader = Reader(browser, path, viewport={"width": 380, "height": 900})
    assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert reader.requests == [path.as_uri()]
    link = reader.page.get_by_role("link", name="inverter (block 0, seed 0)")
    link.click()
    reader.page.wait_for_url(cell.as_uri())
    assert reader.page.title().startswith("A cell")
    reader.page.go_back()
    focused = "document.activeElement.getAttribute('href')"
    for _ in range(20):
        reader.page.keyboard.press("Tab")
        if reader.page.evaluate(focused) == "cells/0a1b/report.html":
            break
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_url(cell.as_uri())
    assert reader.complaints == []
    reader.context.close()


def test_the_report_of_a_study_opens_those_of_its_cells(
    browser: Any, tmp_path: Path, tiny_gpt2: Callable[..., Path]
) -> None:
    from probekit.runs.studies import study

    file = tmp_path / "small.toml"
    file.write_text(
        f"""
        title = "Small"
        parameters.model = {json.dumps(str(tiny_gpt2()))}
        runs.decoders = {{ model = "$model", plugins = "pseudo-inverse", seeds = 2 }}
        charts = [{{ caption = "Rank", figure = {{ run = "decoders", metric = "embedding_rank" }}, x = "seed" }}]
        [[expectations]]
        id = "rank"
        claim = "The embedding has a rank"
        figures.rank = {{ run = "decoders", metric = "embedding_rank" }}
        verdicts.holds = "least(rank) > 0"
        expect = "holds"
        """
    )
    outcome = study(file, tmp_path / "out")
    reader = Reader(browser, outcome.report_path)
    assert outcome.passed
    assert reader.requests == [outcome.report_path.as_uri()]
    assert reader.page.get_by_text("The embedding has a rank").first.is_visible()
    reader.page.get_by_role("link", name="rank", exact=True).click()
    assert reader.page.locator("h3:target").inner_text() == "rank: The embedding has a rank"
    for cell in outcome.cells:
        reader.page.get_by_role("link", name=f"seed {cell.variables['seed']}", exact=True).click()
        reader.page.wait_for_url((outcome.path / "cells" / cell.key / "report.html").as_uri())
        reader.page.go_back()
    assert reader.complaints == []
    reader.context.close()
