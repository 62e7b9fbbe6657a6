"""Token strings and saved pages of others: what reaches HTML, Markdown, files and a terminal."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import strategies as st

from probekit.errors import UsageError, one_line
from probekit.report import Document, Page, Token, TokenRow, draw_figures, render_html, render_markdown
from probekit.report.characters import plain, visible, without_surrogates
from probekit.report.tokens import row_from_json, row_json, trajectory_json, trajectory_rows
from tests.fuzz.harness import Target, check_sentence, few, limited_in_time, many
from tests.fuzz.pages import small_page
from tests.fuzz.values import ODD_TEXTS, changed, changes, characters, json_values, places, texts, with_changes

# What no reader sees, and what a terminal or a browser obeys: controls, direction, surrogates.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
OURS = {"html", "head", "meta", "title", "style", "script", "body"}
SCRIPTS = ("application/json", None)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probekit.report.html.vega_runtime", lambda: "void 0;")
    monkeypatch.setattr("probekit.report.html._page_script", lambda: "void 1;")


class Reader(HTMLParser):
    """What a browser would find in a page: its scripts, the attributes that run or load, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.dangers: list[str] = []
        self.tokens: list[str] = []
        self.frames: list[str] = []
        self._token: list[str] | None = None
        self._script = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("object", "embed", "base", "form", "link"):
            self.dangers.append(tag)
        for name, value in attrs:
            text = (value or "").strip().lower()
            if name.startswith("on") or (name == "style" and "url(" in text):
                self.dangers.append(f"{tag} {name}={value}")
            if name in ("href", "src", "action", "formaction", "xlink:href", "data"):
                local = re.match(r"#|data:image/(png|svg\+xml|jpeg|gif|webp);base64,|[\w.@+-][\w.@+ /-]*$", text)
                if not local:
                    self.dangers.append(f"{tag} {name}={value}")
            if name == "srcdoc":
                self.frames.append(value or "")
                if given.get("sandbox") not in ("", "allow-same-origin"):  # no scripts, above all
                    self.dangers.append("a frame that is not in a sandbox")
        if tag == "script":
            self._script = True
            self.scripts.append("" if given.get("type") is None else "json:")
        if tag == "bdi" and "token" in (given.get("class") or "").split():
            self._token = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = False
        if tag == "bdi" and self._token is not None:
            self.tokens.append("".join(self._token))
            self._token = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        elif self._token is not None:
            self._token.append(data)


def check_html(html: str) -> Reader:
    """Nothing in it runs but our script, nothing loads, nothing invisible is in it."""
    html.encode()
    assert not OBEYED.search(html), OBEYED.search(html)
    found = Reader(html)
    assert not found.dangers, found.dangers
    for script in found.scripts:
        if script.startswith("json:"):
            json.loads(script.removeprefix("json:"))
        else:
            assert script in ("void 0;", "void 1;"), script
    for frame in found.frames:
        inner = Reader(frame)
        assert not inner.scripts, inner.scripts
        assert not inner.dangers, inner.dangers
    return found


def check_tokens(tokens: list[str]) -> None:
    """Each is one line of what a reader sees; rows are the same read back; and HTML says them as they are shown."""
    for text in tokens:
        for shown in (visible(text), plain(text)):
            assert not OBEYED.search(shown)
            shown.encode()
        assert "\n" not in visible(text)
        assert visible(text).strip()
        assert one_line(text).isprintable()
    row = TokenRow("r", [Token(text, title=text) for text in tokens], note=tokens[0])
    written = json.loads(json.dumps(row_json(row)))
    assert row_json(row_from_json(written)) == written
    assert [token["text"] for token in written["tokens"]] == [without_surrogates(text) for text in tokens]
    steps = json.loads(json.dumps(trajectory_json({tokens[0]: [row, row]})))
    assert [row_json(each) for rows in trajectory_rows(steps).values() for each in rows] == [written, written]
    page = Page(tokens[0])
    page.tokens([row], caption=tokens[-1], align=False)
    page.table(["a", tokens[0]], [[text, 1.0] for text in tokens], in_summary=True)
    page.finding(tokens[-1])
    assert Page.from_json(json.loads(json.dumps(page.to_json()))) == page
    document = Document(tokens[0], tokens[-1], [(tokens[0], tokens[-1])], [(tokens[0], page)], command=tokens[-1])
    found = check_html(render_html(document))
    assert found.tokens == [visible(without_surrogates(text)) for text in tokens]
    assert not OBEYED.search(render_markdown(document))


def check_page(data: Any) -> None:
    """A saved page is refused with a sentence, or drawn, and nothing in it runs."""
    try:
        page = Page.from_json(data)
    except ValueError as error:
        check_sentence(one_line(str(UsageError(str(error)))))
        return
    json.dumps(page.to_json(), allow_nan=False)
    assert Page.from_json(json.loads(json.dumps(page.to_json()))).to_json() == page.to_json()
    document = Document("t", "q", pages=[("n", page)])
    check_html(render_html(document))
    assert not OBEYED.search(render_markdown(document))
    list(draw_figures(document.pages, ["csv"]))


HTML_PIECES = [
    *(
        "<b>",
        "</b>",
        "<script>",
        "</script>",
        "<img src=x onerror=x()>",
        "<svg",
        "<a href='javascript:x()'>",
        "<style>",
    ),
    *(
        "@import 'x';",
        "url(http://x)",
        "\\75rl(x)",
        "</style>",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<?",
        "&#x3c;script&#62;",
    ),
    *(
        "<iframe srcdoc='<script>'>",
        "<math>",
        "<table>",
        "<base href=//x>",
        "<form action=x>",
        "onload=x",
        "'",
        '"',
        ">",
        "\0",
    ),
    *(
        "<p style='background:url(x)'>",
        "<input type=checkbox formaction=javascript:x>",
        "<use href='data:x'>",
        "<title>",
        "<style>\ufeff\u202e</style>",
    ),
]
frames = st.lists(st.sampled_from(HTML_PIECES) | st.text(characters, max_size=4), max_size=8).map("".join)


def framed(html: str) -> dict[str, Any]:
    block = {"type": "frame", "html": html, "title": html[:20], "remark": "", "caption": ""}
    return {"schema": 1, "title": "t", "blocks": [block]}


pages = changes.map(lambda way: with_changes(small_page().to_json(), way)) | json_values | frames.map(framed)
one_block = st.tuples(st.integers(0, 13), changes).map(
    lambda drawn: {
        "schema": 1,
        "title": "t",
        "blocks": [with_changes(small_page().to_json()["blocks"][drawn[0]], drawn[1])],
    }
)

TARGETS = [
    Target(
        "tokens", st.lists(st.text(characters, max_size=10) | texts, min_size=1, max_size=4), check_tokens, 60, 7000
    ),
    Target("pages", pages | one_block, check_page, 60, 10_000),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_nothing_of_others_runs_or_hides(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_each_odd_text_as_a_token(text: str) -> None:
    check_tokens([text, "a"])


@pytest.mark.parametrize("piece", [*HTML_PIECES, "".join(HTML_PIECES), "".join(reversed(HTML_PIECES))])
def test_html_of_others(piece: str) -> None:
    with limited_in_time():
        check_page(framed(f"<b>x</b>{piece}y"))


@pytest.mark.parametrize("at", range(14))
def test_an_odd_value_in_each_place_of_a_block(at: int) -> None:
    block = small_page().to_json()["blocks"][at]
    for place in places(block)[1:]:
        for value in (
            "\0\u202e\ud800",
            "</script><script>x()</script>",
            10**400,
            float("nan"),
            {"__proto__": {}},
            [[]],
        ):
            check_page({"schema": 1, "title": "t", "blocks": [changed(block, place, "replace", value)]})
