"""A page with each kind of block, and little in each."""

from __future__ import annotations

from functools import cache

from probekit.report import Page, Token, TokenRow

SVG = "PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciPjxwYXRoIGQ9Ik0wIDBMMSAxIi8+PC9zdmc+"


class Html:
    """An object of another library, which brings its own HTML."""

    def _repr_html_(self) -> str:
        return "<b style='color: red'>x</b><svg><path d='M0 0'/></svg>"


@cache
def small_page() -> Page:
    page = Page("t")
    page.finding("f 1.")
    page.heading("h")
    page.prose("p\n\nq")
    page.note("n")
    row = TokenRow("l", [Token(" a", "right", 0.5, "t"), Token("b")], "n")
    page.tokens([row], caption="c", marks={"right": "x"})
    page.trajectory({"a": [row, TokenRow("s", [Token("q")])]}, reference=row, marks={"right": "x"}, caption="d")
    page.table(["a", "b"], [["x", 1.5], [None, True]], "c", interactive=True, in_summary=True, targets=["a.html", "#h"])
    page.links([("a", "b.html")])
    page.lines({"restart 1": [(0, 1), (1, 2.5)], "restart 2": [(0, 3)]}, log_y=True, caption="e")
    page.band({"a": [("x", 1, 0, 2)]}, caption="g")
    page.heatmap([[1, 2], [3, None]], ["a", "b"], ["c", "d"], domain=(0, 4), caption="i")
    page.chart({"mark": "bar", "encoding": {"x": {"field": "a"}}, "data": {"values": [{"a": 1}]}}, caption="j")
    table = {"caption": "", "columns": ["a"], "rows": [[1]], "remark": ""}
    page._image("image/svg+xml", SVG, [10, 10], "alternative", [table])
    page.show(Html())
    return page
