import json
import math

from probekit.report import Page
from probekit.report.charts import MOST_CELLS, Chart, chart_of


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
    assert [value["y"] for value in chart.spec["data"]["values"]] == [1.0, None, None]
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
    assert chart.spec is not None
    assert len(chart.table.rows) == MOST_CELLS // 2
    assert "10000 of 20000 rows" in chart.table.thinned
    assert len(chart.spec["data"]["values"]) == MOST_CELLS


def test_the_data_of_a_foreign_chart_are_found_where_altair_puts_them() -> None:
    page = Page("t")
    spec = {"mark": "bar", "data": {"name": "d"}, "datasets": {"other": [], "d": [{"a": 1}, {"b": [2]}]}}
    page.chart(spec)
    table = drawn(page).table
    assert table is not None
    assert (table.columns, table.rows) == (["a", "b"], [[1, None], [None, "[2]"]])
