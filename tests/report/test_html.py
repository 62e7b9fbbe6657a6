import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from probekit.report import Document, Page, Token, TokenRow, html, render_html


class Markup(HTMLParser):
    """Collects the elements, attributes and text of a page, as an independent reader sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def links_of(page: Page) -> list[str | None]:
    markup = Markup(of_page(page))
    return [each["href"] for tag, each in markup.elements if tag == "a" and not (each["href"] or "").startswith("#")]


def of_page(page: Page) -> str:
    return render_html(Document("t", "q", pages=[("name", page)]))


def test_hostile_text_adds_no_element_and_no_attribute(document: Document) -> None:
    markup = Markup(render_html(document))
    scripts = [attributes for tag, attributes in markup.elements if tag == "script"]
    assert len([each for each in scripts if not each]) == 2
    assert all(each.get("type") == "application/json" for each in scripts if each)
    assert not [tag for tag, _ in markup.elements if tag in ("img", "b", "iframe", "object", "base", "form")]
    attributes = {name for _, each in markup.elements for name in each}
    assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")}
    links = [str(each["href"]) for tag, each in markup.elements if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["a/report.html", "b/report.html"]


def test_text_is_shown_as_written_and_not_evaluated(document: Document) -> None:
    text = render_html(document)
    assert "{{ 7*7 }}" in text
    assert "⟨U+202E⟩" in text
    assert "\u202e" not in text
    assert "\x00" not in text
    text.encode("utf-8")


def test_the_same_document_gives_the_same_bytes(document: Document) -> None:
    # Compared as a truth value: pytest would spell out the difference of two megabytes.
    assert (render_html(document) == render_html(document)) is True


def test_a_report_with_charts_stays_below_a_megabyte_and_a_half(document: Document) -> None:
    assert len(render_html(document).encode("utf-8")) < 1_500_000


def test_a_report_without_charts_carries_no_runtime() -> None:
    page = Page("t")
    page.prose("only words")
    assert len(of_page(page).encode("utf-8")) < 60_000


def test_the_policy_allows_the_hashed_style_and_scripts_and_nothing_else(document: Document) -> None:
    text = render_html(document)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    allowed = policy[1].replace("&#39;", "'")
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-[^']+' 'sha256-[^']+'; style-src 'sha256-[^']+'; "
        r"base-uri 'none'; form-action 'none'",
        allowed,
    )


def test_question_findings_evidence_and_provenance_come_in_that_order(document: Document) -> None:
    text = Markup(render_html(document)).text
    places = [
        text.index(part)
        for part in ("What does block 3 know?", "24 of 26 tokens", "First paragraph.", "This command makes the report")
    ]
    assert places == sorted(places)


def test_one_analysis_needs_no_contents_and_repeats_no_finding() -> None:
    page = Page("t")
    page.finding("42 of 43")
    text = of_page(page)
    assert "<nav" not in text
    assert text.count("42 of 43") == 1


def test_failures_are_shown_even_where_nothing_else_is() -> None:
    text = render_html(Document("t", "q", failures=[("jacobian", "Out of memory.")]))
    assert "jacobian" in text
    assert "Out of memory." in text


def test_right_and_wrong_differ_by_more_than_colour() -> None:
    page = Page("t")
    page.tokens([TokenRow("a", [Token("x", "right"), Token("y", "wrong")])])
    text = of_page(page)
    assert '<span class="aside">wrong: </span>y' in text
    style = html._TEMPLATES.joinpath("page.css").read_text()
    assert re.search(r"\.token\.wrong \{[^}]*font-weight: 700;[^}]*underline wavy", style)


def test_each_row_of_tokens_is_one_tab_stop() -> None:
    page = Page("t")
    page.tokens([TokenRow(f"row {row}", [Token("x", value=0.5) for _ in range(200)]) for row in range(3)])
    assert of_page(page).count('tabindex="0" data-tip') == 3


def test_a_colour_says_its_value_in_words() -> None:
    page = Page("t")
    page.tokens([TokenRow("a", [Token(" x", "wrong", 0.25), Token("plain")])])
    text = of_page(page)
    assert 'data-tip="·x\nwrong, value 0.25"' in text
    assert text.count("data-tip=") == 1


def test_without_vl_convert_charts_are_their_data_and_the_page_says_why(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    text = of_page(page)
    assert "vl-convert-python was not installed" in text
    assert 'data-chart="analysis' not in text
    assert '<details class="data-of-chart" open>' in text


def test_importing_the_report_room_imports_nothing_heavy_and_nothing_else_of_probekit() -> None:
    code = (
        "import sys, probekit.report\n"
        "heavy = {'torch', 'numpy', 'vl_convert', 'altair', 'transformers'} & set(sys.modules)\n"
        "ours = {name for name in sys.modules if name.startswith('probekit.') and 'report' not in name}\n"
        "print(sorted(heavy | ours))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['probekit.cache']"


def test_links_are_anchors_with_their_text_escaped() -> None:
    hostile = "</a></script><img src=x onerror=alert(1)>\" onclick='alert(1)' \x00 \ud800 " + "x" * 10_000
    page = Page("t")
    page.links([(hostile, "cells/1/report.html"), ("", "b c.html")], caption=hostile)
    markup = Markup(of_page(page))
    assert links_of(page) == ["cells/1/report.html", "b c.html"]
    assert "<img src=x onerror=alert(1)>" in markup.text
    assert not [tag for tag, _ in markup.elements if tag == "img"]
    assert not [name for _, each in markup.elements for name in each if name.startswith("on") or name == "tabindex"]


def test_no_links_leave_nothing_behind() -> None:
    page = Page("t")
    page.links([], caption="Nothing here")
    assert links_of(page) == []
    assert "Nothing here" not in Markup(of_page(page)).text
