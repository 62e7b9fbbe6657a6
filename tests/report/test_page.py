import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy
import pytest

from probekit.report import Document, Page, Token, TokenRow, render_html
from probekit.report.tokens import MOST_CHARACTERS


def through_json(page: Page, **options: Any) -> Page:
    return Page.from_json(json.loads(json.dumps(page.to_json(), allow_nan=False, **options)))


def test_a_page_is_the_same_page_after_json(page: Page) -> None:
    assert through_json(page) == page
    assert through_json(page).to_json() == page.to_json()


def test_a_page_is_drawn_the_same_after_json(page: Page) -> None:
    first, second = (render_html(Document("t", "q", pages=[("name", each)])) for each in (page, through_json(page)))
    # Compared as a truth value: pytest would spell out the difference of two megabytes.
    assert (first == second) is True


TARGETS = ["cells/0a1b/report.html", "report.html", "a b/c+d@e-f.html", "./here.html", "größe.html"]
ASTRAY = [
    *(
        "",
        " ",
        "/etc/passwd",
        "//example.org/a",
        "https://example.org",
        "http:a",
        "javascript:alert(1)",
        "data:text/html,a",
    ),
    *(
        "..",
        "../a.html",
        "a/../../b.html",
        "a//b",
        "a/",
        "JaVaScRiPt:1",
        "file:///a",
        "\\\\host\\a",
        "a\\..\\b",
        "a?b",
        "#a",
    ),
    *(
        "a%2e%2e/b",
        "%2e%2e/a",
        "\ta",
        "a\n",
        "java\nscript:1",
        "&#106;avascript:1",
        "a\0",
        "a\ud800",
        "C:/a",
        "a:b",
        "<b>",
    ),
]


def test_links_are_the_same_after_json() -> None:
    page = Page("t")
    page.links([(f"<b>{target}", target) for target in TARGETS], caption="Runs")
    page.links([])
    assert through_json(page) == page
    assert [link["target"] for link in page.blocks[0]["targets"]] == TARGETS


@pytest.mark.parametrize("target", ASTRAY, ids=ascii)
def test_a_link_leads_nowhere_but_beside_the_report(target: str) -> None:
    page = Page("t")
    with pytest.raises(ValueError, match="beside the report or below it"):
        page.links([("text", "fine.html"), ("text", target)])
    assert page.blocks == []
    block = {"type": "links", "targets": [{"text": "text", "target": target}], "caption": ""}
    with pytest.raises(ValueError, match="beside the report or below it"):
        Page.from_json({"schema": 1, "title": "t", "blocks": [block]})


@pytest.mark.parametrize("targets", [None, "ab", [{"text": "a"}], [{"text": "a", "target": 5}], [["a", "b"]]])
def test_links_that_are_malformed_are_refused(targets: Any) -> None:
    with pytest.raises(ValueError, match="of type 'links', is malformed"):
        Page.from_json({"schema": 1, "title": "t", "blocks": [{"type": "links", "targets": targets}]})


def test_series_keep_their_order_in_json_with_sorted_keys() -> None:
    page = Page("t")
    page.lines({"b": [(0, 1.0)], "a": [(0, 2.0)]})
    assert [series["name"] for series in through_json(page, sort_keys=True).blocks[0]["series"]] == ["b", "a"]


def test_a_page_can_be_written_as_raw_utf_8(page: Page) -> None:
    json.dumps(page.to_json(), allow_nan=False, ensure_ascii=False).encode("utf-8")


def test_changing_what_to_json_gave_does_not_change_the_page() -> None:
    page = Page("t")
    page.table(["a"], [[1]])
    page.to_json()["blocks"][0]["rows"][0][0] = 2
    assert page.blocks[0]["rows"] == [[1]]


def test_findings_are_listed_in_order() -> None:
    page = Page("t")
    page.finding("one")
    page.prose("between")
    page.finding("two")
    assert page.findings == ["one", "two"]


def test_numpy_results_are_taken_as_they_are() -> None:
    page = Page("t")
    page.heatmap(numpy.eye(2, dtype=numpy.float32), numpy.arange(2), ["a", "b"])
    page.lines({"loss": numpy.array([[0, 1.5], [1, math.nan]])})
    assert page.blocks[0]["values"] == [[1.0, 0.0], [0.0, 1.0]]
    assert page.blocks[1]["series"][0]["points"] == [[0.0, 1.5], [1.0, None]]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"schema": 2, "title": "t", "blocks": []}, "schema 2, and this probekit reads schema 1"),
        ({"title": "t"}, "no schema version"),
        ([], "not a page"),
        ({"schema": 1, "title": "t", "blocks": [{"type": "video"}]}, "unknown type 'video'; known types: band"),
        ({"schema": 1, "title": "t", "blocks": [{"type": "to_json"}]}, "unknown type"),
        ({"schema": 1, "title": "t", "blocks": ["prose"]}, "not an object"),
        ({"schema": 1, "title": "t", "blocks": None}, "The blocks of a page are a list"),
        ({"schema": 1, "title": "t", "blocks": [{"type": "prose"}]}, "Block 0 .* 'prose', is malformed"),
        ({"schema": 1, "title": "t", "blocks": [{"type": "prose", "text": "a", "b": 1}]}, "malformed"),
        ({"schema": 1, "title": "t", "blocks": [{"type": "tokens", "rows": [{"label": "a"}]}]}, "malformed"),
        ({"schema": 1, "title": "t", "blocks": [{"type": "lines", "series": {"a": []}}]}, "malformed"),
    ],
)
def test_what_is_not_a_page_is_refused_with_a_sentence(data: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Page.from_json(data)


def test_data_that_cannot_be_drawn_are_refused_with_a_sentence() -> None:
    page = Page("t")
    with pytest.raises(ValueError, match="Row 1 of a table has 1 cells, but there are 2 columns"):
        page.table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="2 y labels and 1 x labels, but its values are 1 rows"):
        page.heatmap([[1]], ["x"], ["a", "b"])
    with pytest.raises(ValueError, match="low before high"):
        page.heatmap([[1]], ["x"], ["a"], domain=(1, 0))
    with pytest.raises(ValueError, match="has 2 figures"):
        page.lines({"a": [(1, 2, 3)]})
    with pytest.raises(ValueError, match=r"lies in 0\.\.1"):
        page.tokens([TokenRow("a", [Token("b", value=3)])])
    with pytest.raises(ValueError, match="'right', 'wrong' or None"):
        page.tokens([TokenRow("a", [Token("b", mark="maybe")])])  # type: ignore[arg-type]
    assert page.blocks == []


def test_a_rounding_error_past_the_end_of_the_colour_scale_is_forgiven() -> None:
    page = Page("t")
    page.tokens([TokenRow("a", [Token("b", value=1.0000001), Token("c", value=math.nan)])])
    assert [token.get("value") for token in page.blocks[0]["rows"][0]["tokens"]] == [1, None]


BAR = {"mark": "bar", "encoding": {}}


@pytest.mark.parametrize(
    "spec",
    [
        BAR | {"data": {"url": "https://example.org/data.csv"}},
        BAR | {"data": {"url": "data.csv"}},
        {"hconcat": [BAR, BAR | {"data": {"url": "data:text/csv,a"}}]},
        BAR | {"transform": [{"lookup": "a", "from": {"data": {"url": "http://example.org"}, "key": "a"}}]},
        {"mark": "image", "encoding": {"url": {"field": "a"}}},
        {"layer": [{"mark": {"type": "image", "url": "http://example.org/a.png"}}]},
    ],
)
def test_a_chart_that_would_load_something_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must carry its data with it"):
        Page("t").chart(spec)


def test_a_column_named_url_in_the_data_is_just_a_column() -> None:
    page = Page("t")
    page.chart(BAR | {"data": {"values": [{"data": {"url": "x"}, "mark": "image"}]}})
    assert page.blocks[0]["spec"]["data"]["values"][0]["mark"] == "image"


def test_a_chart_is_a_dict_or_has_to_dict_and_is_vega_lite() -> None:
    class Author:
        def to_dict(self) -> dict[str, Any]:
            embed = {"embedOptions": {"loader": {"http": {}}}}
            schema = "https://vega.github.io/schema/vega-lite/v5.json"
            return BAR | {"$schema": schema, "usermeta": embed, "height": math.nan}

    page = Page("t")
    page.chart(Author())
    assert page.blocks[0]["spec"] == BAR | {"height": None}
    with pytest.raises(ValueError, match="a Vega-Lite dict or an object with to_dict"):
        page.chart("<svg>")
    with pytest.raises(ValueError, match="which is Vega"):
        page.chart({"$schema": "https://vega.github.io/schema/vega/v5.json"})


def test_a_trajectory_keeps_the_steps_that_a_page_can_carry_and_asks_for_no_others() -> None:
    asked: list[int] = []

    class Rows(Sequence[TokenRow]):
        def __len__(self) -> int:
            return 5000

        def __getitem__(self, step: Any) -> TokenRow:
            asked.append(step)
            return TokenRow(f"step {step}", [Token(f"{place}") for place in range(400)])

    page = Page("t")
    page.trajectory({"a": Rows(), "b": Rows()})
    [block] = page.blocks
    labels = [row["label"] for row in block["series"][0]["rows"]]
    assert labels[0] == "step 0"
    assert labels[-1] == "step 4999"
    assert 200 <= len(labels) <= 251
    assert block["thinned"].startswith(f"{len(labels)} of 5000 steps are on this page, evenly spaced")
    assert len(asked) < 5 * len(labels)
    assert len(block["vocabulary"]) == 400
    again = Page.from_json(json.loads(json.dumps(page.to_json())))
    assert again.to_json() == page.to_json()


def test_a_trajectory_of_which_every_token_is_another_is_thinned_by_its_size() -> None:
    page = Page("t")
    rows = [TokenRow(f"{step}", [Token(f"{step} {place}" + "x" * 90) for place in range(20)]) for step in range(2000)]
    page.trajectory({"a": rows})
    [block] = page.blocks
    assert sum(len(token["text"]) for token in block["vocabulary"]) <= MOST_CHARACTERS
    assert f"{len(block['series'][0]['rows'])} of 2000 steps" in block["thinned"]


@pytest.mark.parametrize(
    ("series", "marks", "message"),
    [
        ({}, None, "at least one series"),
        ({"a": []}, None, "at least one series, and each series at least one row"),
        ({"a": [TokenRow("s", [])]}, {"good": "x"}, "The marks of tokens are 'right' and 'wrong'"),
        ({"a": [TokenRow("s", [Token("x", mark="good")])]}, None, "A token's mark is"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_trajectory_is_refused(series: Any, marks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Page("t").trajectory(series, marks=marks)


@pytest.mark.parametrize("index", [-1, 7, "0", None])
def test_a_trajectory_that_was_tampered_with_is_refused(index: Any) -> None:
    page = Page("t")
    page.trajectory({"a": [TokenRow("s", [Token("x"), Token("y")])]})
    data = json.loads(json.dumps(page.to_json()))
    data["blocks"][0]["series"][0]["rows"][0]["tokens"][0] = index
    with pytest.raises(ValueError, match="malformed"):
        Page.from_json(data)


def test_the_targets_of_a_table_are_one_for_each_row_and_lead_below_the_report() -> None:
    page = Page("t")
    page.table(["a"], [["x"], ["y"]], targets=["x/report.html", None])
    assert page.blocks[0]["targets"] == ["x/report.html", None]
    with pytest.raises(ValueError, match="2 rows, but there are 1 targets"):
        page.table(["a"], [["x"], ["y"]], targets=["x"])
    for target in ("https://example.org", "/etc/passwd", "../x", "javascript:alert(1)"):
        with pytest.raises(ValueError, match="A link leads to a file beside the report"):
            page.table(["a"], [["x"]], targets=[target])


def test_a_target_of_a_table_can_be_a_heading_of_the_page() -> None:
    page, other = Page("t"), Page("u")
    page.table(["a"], [["x"], ["y"], ["z"]], targets=["#Why <it> does", "#Nowhere", "x/report.html"])
    page.heading("Why <it> does")
    other.heading("Nowhere")
    page = Page.from_json(json.loads(json.dumps(page.to_json())))
    html = render_html(Document("t", "q", pages=[("one", page), ("two", other)]))
    [anchor] = re.findall(r'<h3 id="(.*?)">Why &lt;it&gt; does</h3>', html)
    assert re.findall(r'<td>(?:<a href="(.*?)">)?([xyz])', html) == [
        (f"#{anchor}", "x"),
        ("", "y"),
        ("x/report.html", "z"),
    ]
