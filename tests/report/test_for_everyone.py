"""A report for every reader: by keyboard, by screen reader, on paper, on a narrow screen, and when it is large."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from benchmarks.large_report import LAYERS, STEPS, TOKENS, large_document
from probekit.report import Document, Page, Token, TokenRow, render_html
from probekit.report.characters import visible
from tests.report.conftest import HOSTILE
from tests.report.reading import Reader, chromium

pytestmark = pytest.mark.chromium

TEXTS = [
    *HOSTILE,
    "x" * 10_000,
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "\u202d\u2066abc\u2069",
    "ק\u05b0",
    "a\u0301\u0301\u0301",
    "\ufeff",
    "\r\n",
]
# What a reader can operate.
CONTROLS = "a[href], button, input, select, textarea, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def opened(browser: Any, document: Document, folder: Path, **context: Any) -> Reader:
    path = folder / "report.html"
    path.write_text(render_html(document), encoding="utf-8")
    return Reader(browser, path, **context)


def wrongs(reader: Reader) -> list[str]:
    """What axe finds wrong, each rule with the elements."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    reader.page.evaluate(f"{axe}; undefined")
    found = reader.page.evaluate(
        "axe.run(document, { resultTypes: ['violations'] }).then((result) => result.violations)"
    )
    return [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes'][:3]]}" for rule in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
def test_axe_finds_nothing_wrong(browser: Any, document: Document, tmp_path: Path, scheme: str, width: int) -> None:
    reader = opened(browser, document, tmp_path, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert wrongs(reader) == []
    reader.page.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    reader.page.wait_for_timeout(200)  # boxes that scroll get their tab stops with the next frames
    assert wrongs(reader) == []
    assert reader.complaints == []
    reader.context.close()


def test_axe_would_notice(browser: Any, tmp_path: Path) -> None:
    """The check above can fail: it finds what was taken away from a good page."""
    page = Page("t")
    page.table(["a"], [[1]], interactive=True)
    reader = opened(browser, Document("T", "q", pages=[("t", page)]), tmp_path)
    assert wrongs(reader) == []
    reader.page.evaluate("document.querySelectorAll('label').forEach((label) => label.remove())")
    assert [wrong.partition(":")[0] for wrong in wrongs(reader)] == ["label"]
    reader.context.close()


@pytest.mark.parametrize("width", [380, 1280])
def test_the_keyboard_alone_reaches_every_control(browser: Any, document: Document, tmp_path: Path, width: int) -> None:
    reader = opened(browser, document, tmp_path, viewport={"width": width, "height": 900})
    reader.page.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    reader.page.wait_for_timeout(100)
    visible_ones = f"[...document.querySelectorAll(`{CONTROLS}`)].filter((one) => one.checkVisibility())"
    reader.page.evaluate(f"{visible_ones}.forEach((one, number) => (one.dataset.number = number))")
    wanted = set(range(reader.page.evaluate(f"{visible_ones}.length")))
    assert len(wanted) > 40
    reached: list[int] = []
    for _ in range(2 * len(wanted)):
        reader.page.keyboard.press("Tab")
        number = reader.page.evaluate("document.activeElement.dataset.number ?? null")
        if number is None:
            break
        reached.append(int(number))
        outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        assert reader.page.evaluate(outlined), "where the focus is can be seen"
    assert set(reached) == wanted
    assert reached == sorted(reached), "in the order in which they are read"
    reader.context.close()


def test_each_token_shows_its_text_whatever_it_is(browser: Any, tmp_path: Path) -> None:
    page = Page("t")
    tokens = [Token(text, mark="wrong", title="x") for text in TEXTS]
    page.tokens([TokenRow("a", tokens)], align=False)
    page.tokens([TokenRow("a", tokens), TokenRow("b", tokens)], align=True)
    page.trajectory({"a": [TokenRow("0", tokens[:1]), TokenRow("1", tokens)]})
    reader = opened(browser, Document("T", "q", pages=[("t", page)]), tmp_path, viewport={"width": 380, "height": 900})
    expected = [visible(text) for text in TEXTS]
    read = """(rows) => rows.map((row) => [...row.querySelectorAll(".token")].map((token) => {
      const copy = token.cloneNode(true);
      copy.querySelectorAll(".aside").forEach((aside) => aside.remove());
      return copy.textContent;
    }))"""
    for rows in (".wrapped:not(.steps *) .row", ".aligned:not(.steps-view *) tr", ".steps-view tr"):
        found = reader.page.locator(rows).evaluate_all(read)
        assert found
        for texts in found:
            assert texts == expected, rows
    # Redrawn by the slider, they are the same.
    reader.page.get_by_role("slider").focus()
    reader.page.keyboard.press("Home")
    reader.page.keyboard.press("End")
    assert reader.page.locator(".steps-view tr").evaluate_all(read) == [expected]
    assert reader.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (reader.complaints, reader.page.evaluate("[violations.length, window.ranHostile ?? null]")) == (
        [],
        [0, None],
    )
    reader.context.close()


def test_no_element_has_a_handler_or_a_style_of_its_own(document: Document) -> None:
    """As text, before any script: what the policy would block is not there in the first place."""
    html = re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", render_html(document), flags=re.DOTALL)
    tags = re.findall(r"<[a-z][^\s>]*((?:\s+[^\s=>]+(?:=\"[^\"]*\")?)*)\s*>", html)
    names = {name.lower() for tag in tags for name in re.findall(r"\s([^\s=>\"]+)(?:=\"[^\"]*\")?", tag)}
    assert "class" in names
    assert not [name for name in names if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_has_every_chart_and_no_controls(browser: Any, document: Document, tmp_path: Path, scheme: str) -> None:
    reader = opened(browser, document, tmp_path, color_scheme=scheme)
    reader.page.emulate_media(media="print", color_scheme=scheme)
    reader.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    drawings = "[...document.querySelectorAll('.stage')].filter((stage) => stage.offsetHeight).length"
    assert reader.page.evaluate(drawings) == reader.page.locator("[data-chart]").count()
    for control in ("button:not(th *)", "input", "nav", ".skip"):
        assert (
            reader.page.locator(control).evaluate_all("(all) => all.filter((one) => one.checkVisibility()).length") == 0
        )
    assert reader.page.locator("details.fold:not([open])").count() == 0
    assert reader.page.pdf(format="A4").startswith(b"%PDF")
    assert reader.complaints == []
    reader.context.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_text(render_html(large_document()), encoding="utf-8")
    return path


def test_the_report_of_a_large_run_is_small_and_says_what_was_thinned(large: Path) -> None:
    text = large.read_text(encoding="utf-8")
    assert len(text.encode()) <= 5_000_000
    assert re.search(rf"\d+ of {STEPS + 1} steps are on this page, evenly spaced", text)
    assert re.search(rf"one of \d+ points of each line, of {LAYERS * (STEPS + 1):,} in all", text)
    assert re.search(rf"\d+ of {LAYERS} rows, evenly spaced", text)


def test_a_large_report_can_be_read_and_stepped_through(browser: Any, large: Path) -> None:
    """How fast it opens is measured by the benchmark `report`, not here: this says that it works at all."""
    reader = Reader(browser, large)
    rows = reader.page.locator(".steps-view tr")
    assert rows.count() == LAYERS + 1
    assert rows.nth(1).locator(".token").count() == TOKENS
    wrong_ones = "document.querySelectorAll('.steps-view .wrong').length"
    at_the_end = reader.page.evaluate(wrong_ones)
    reader.page.get_by_role("slider").focus()
    reader.page.keyboard.press("Home")
    assert reader.page.evaluate(wrong_ones) == LAYERS * TOKENS > at_the_end
    reader.page.keyboard.press("End")
    assert reader.page.evaluate(wrong_ones) == at_the_end
    heatmap = reader.page.locator("[data-chart]").last
    assert heatmap.locator("canvas").count() == 1
    assert reader.complaints == []
    assert reader.requests == [large.as_uri()]
    reader.context.close()
