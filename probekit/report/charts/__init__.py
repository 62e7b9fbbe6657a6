"""Blocks of figures as Vega-Lite specs, each with its key, its description and its data as a table.

Specs carry no colours: the theme gives Vega those of the reader's light or dark page, or of paper, by the names of the
stylesheet's variables. The key beside a chart on a page is HTML, so it wraps on a narrow screen and can be read aloud;
a chart that is saved as a figure has Vega's own legend.
"""

from collections.abc import Callable, Mapping
from typing import Any

from probekit.report.charts.chart import Chart, Data, KeyEntry, Table
from probekit.report.charts.foreign import foreign_chart
from probekit.report.charts.heatmap import heatmap_chart
from probekit.report.charts.series import series_chart

__all__ = ["CHARTS", "Chart", "Data", "KeyEntry", "Table", "chart_of"]

CHARTS: Mapping[str, Callable[[dict[str, Any]], Chart]] = {
    "lines": series_chart,
    "band": series_chart,
    "heatmap": heatmap_chart,
    "chart": foreign_chart,
}


def chart_of(block: dict[str, Any]) -> Chart:
    """The chart of a `lines`, `band`, `heatmap` or `chart` block."""
    return CHARTS[block["type"]](block)
