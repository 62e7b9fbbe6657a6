import csv
import io
import json
import math

import pytest

from probekit.report import Page
from probekit.report.charts import Chart, chart_of
from probekit.report.charts.chart import MOST_CELLS
from probekit.report.charts.series import MOST_POINTS


def drawn(page: Page) -> Chart:
    return chart_of(page.blocks[-1])


def test_lines_over_the_same_steps_share_a_table_of_one_column_each() -> None:
    page = Page("t")
    page.lines({"a": [(0, 1.0), (1, 2.0)], "b": [(0, 3.0), (1, math.nan)]})
    chart = drawn(page)
    assert chart.table is not None
    assert chart.table.columns == ["step", "a", "b"]
    assert chart.table.rows == [[0, 1.0, 3.0], [1, 2.0, None]]


def test_what_has_no_place_on_a_log_axis_is_left_out_and_said() -> None:
    page = Page("t")
    page.lines({"a": [(0, 1.0), (1, 0.0), (2, -3.0)]}, log_y=True)
    chart = drawn(page)
    assert chart.spec is not None
    assert chart.spec["transform"] == [{"calculate": "datum.y > 0 ? datum.y : null", "as": "y"}]
    assert chart.data is not None
    assert chart.data.columns[2] == [1.0, 0.0, -3.0]
    assert chart.remarks == ["2 of 3 figures are zero or below and have no place on a logarithmic axis."]


def test_a_log_axis_without_any_positive_figure_becomes_linear() -> None:
    page = Page("t")
    page.lines({"a": [(0, 0.0)]}, log_y=True)
    chart = drawn(page)
    assert chart.spec is not None
    assert chart.spec["encoding"]["y"]["scale"] == {"zero": False}
    assert "linear" in chart.remarks[0]


def test_charts_without_a_finite_figure_are_not_drawn() -> None:
    page = Page("t")
    page.lines({"a": [(0, math.nan)]})
    assert drawn(page).spec is None
    page.lines({})
    assert drawn(page).spec is None
    page.heatmap([[math.nan]], ["x"], ["y"])
    assert drawn(page).spec is None
    page.heatmap([], [], [])
    assert drawn(page).spec is None


def test_many_series_take_ordered_colours_and_all_stay_distinct_in_the_key() -> None:
    page = Page("t")
    page.lines({f"block {index}": [(0, index)] for index in range(12)})
    colours = [entry.colour for entry in drawn(page).key]
    assert colours == sorted(colours, key=lambda colour: int(colour.removeprefix("level-")))
    assert len(set(colours)) == 12


def test_series_and_labels_that_look_alike_stay_apart() -> None:
    page = Page("t")
    page.heatmap([[1, 2, 3]], ["the", " the", "the"], ["b"])
    chart = drawn(page)
    assert chart.spec is not None
    assert chart.spec["encoding"]["x"]["scale"]["domain"] == ["the", "·the", "the₂"]


def test_author_text_is_never_part_of_an_expression() -> None:
    page = Page("t")
    text = "'] || alert(1) || ['"
    page.lines({text: [(0, 1.0)]}, x=text, y=text)
    signals: list[str] = []
    json.loads(json.dumps(drawn(page).spec), object_hook=lambda part: signals.append(part.get("signal", "")))
    assert "".join(signals) == "max(2, ceil(width / 90))"


def test_a_chart_describes_itself_where_the_author_did_not() -> None:
    page = Page("t")
    page.heatmap([[0.25, 0.5]], ["a", "b"], ["c"], value="cosine")
    assert drawn(page).description == "Heatmap of cosine by block (1) and position (2); from 0.25 to 0.5."


def test_a_very_long_table_is_thinned_and_says_so() -> None:
    page = Page("t")
    page.lines({"a": [(step, 1.0) for step in range(MOST_CELLS)]})
    chart = drawn(page)
    assert chart.table is not None
    assert chart.data is not None
    assert len(chart.table.rows) == MOST_CELLS // 2
    assert f"{MOST_CELLS // 2} of {MOST_CELLS} rows" in chart.table.thinned
    assert len(chart.data.records()) == MOST_CELLS
    assert chart.stride == 1


def test_of_very_many_points_a_page_has_some_with_every_peak_and_gap_and_says_so() -> None:
    page = Page("t")
    points: list[tuple[int, float | None]] = [(step, 1 / 3 + step % 5) for step in range(10_000)]
    points[4321], points[7777] = (4321, 1000.0), (7777, None)
    page.lines(dict.fromkeys("abc", points))
    chart = drawn(page)
    assert chart.data is not None
    assert (chart.stride, len(chart.data.records())) == (6, 30_000)
    assert "one of 6 points of each line, of 30,000 in all" in chart.remarks[0]
    kept = chart.data.thinned(chart.stride)
    assert 4_500 <= len(kept.columns[0]) <= MOST_POINTS + 10
    for name in "abc":
        of_it = [(x, y) for series, x, y in zip(*kept.columns, strict=True) if series == name]
        assert of_it[0] == points[0]
        assert of_it[-1] == points[-1]
        assert (4321, 1000.0) in of_it
        assert (7777, None) in of_it
        assert set(of_it) <= set(points)
        assert of_it == sorted(of_it, key=lambda point: point[0])
    embedded = kept.embedded()
    assert embedded["levels"] == {"series": ["a", "b", "c"]}
    assert embedded["columns"][2][1] in (0.3333333, 4.333333)


def test_the_widest_of_a_band_is_kept() -> None:
    page = Page("t")
    points = [(step, 1.0, 0.5, 2.0) for step in range(20_000)]
    points[11_111], points[12_345] = (11_111, 1.0, -9.0, 2.0), (12_345, 1.0, 0.5, 99.0)
    page.band({"a": points})
    chart = drawn(page)
    assert chart.data is not None
    kept = list(zip(*chart.data.thinned(chart.stride).columns[1:], strict=True))
    assert {points[11_111], points[12_345]} <= set(kept)


def test_a_place_may_be_a_text_and_texts_keep_the_order_in_which_they_appear() -> None:
    page = Page("t")
    sites = ["embedding", "block.10", "block.9", "norm"]
    page.lines({"a": [(site, 1.0) for site in sites], "b": [("logits", 2.0), ("norm", 1.0)]}, x="site")
    chart = drawn(page)
    assert chart.spec is not None
    assert chart.spec["encoding"]["x"]["type"] == "ordinal"
    assert chart.spec["encoding"]["x"]["scale"]["domain"] == [*sites, "logits"]
    with pytest.raises(ValueError, match="all numbers or all texts"):
        page.band({"a": [(1, 1, 1, 1), ("norm", 1, 1, 1)]})


def test_data_are_saved_as_csv_under_the_readers_words() -> None:
    page = Page("t")
    page.band({'say "a", b': [(0, 1.5, 1.0, math.nan), (1, 2.0, 1.0, 3.0)]}, x="step", y="r")
    chart = drawn(page)
    assert chart.data is not None
    assert list(csv.reader(io.StringIO(chart.data.csv()))) == [
        ["series", "step", "median", "low", "high"],
        ['say "a", b', "0", "1.5", "1.0", ""],
        ['say "a", b', "1", "2.0", "1.0", "3.0"],
    ]


def test_the_data_of_a_foreign_chart_are_found_where_altair_puts_them() -> None:
    page = Page("t")
    spec = {"mark": "bar", "data": {"name": "d"}, "datasets": {"other": [], "d": [{"a": 1}, {"b": [2]}]}}
    page.chart(spec)
    table = drawn(page).table
    assert table is not None
    assert (table.columns, table.rows) == (["a", "b"], [[1, None], [None, "[2]"]])
