"""Objects of other libraries as blocks: what `Page.show` takes.

No library is imported here. An object of pandas or matplotlib can only be there if somebody has imported it, so it is
found among the imported modules; and whoever shows none pays for none.
"""

from collections.abc import Callable, Mapping
from typing import Any

from probekit.report.frames import cleaned_html
from probekit.report.pictures import picture_of
from probekit.report.specs import is_vega_lite, plain_spec
from probekit.report.tabular import instance_of, is_tabular, table_of

_SHOWN = (
    "page.show takes a Vega-Lite chart (a dict, or an object with to_dict() such as an Altair chart), a pandas "
    "DataFrame, Series, Index or Styler, a matplotlib figure or axes, or an object with _repr_html_()"
)


def block_of(shown: object) -> tuple[str, dict[str, Any]]:
    """The kind of block that shows an object, and its content. Raises ValueError, with a sentence, if none does."""
    if is_tabular(shown):
        return "table", table_of(shown)
    if (figure := _figure(shown)) is not None:
        return "image", picture_of(figure)
    if (spec := _spec(shown)) is not None:
        return "chart", {"spec": spec}
    if (html := _repr_html(shown)) is not None:
        return "frame", _frame(html, shown)
    advice = " Show its items one by one." if isinstance(shown, list | tuple | set) or hasattr(shown, "shape") else ""
    advice = " Text goes into page.prose." if isinstance(shown, str) else advice
    raise ValueError(f"{_SHOWN}; this one is a {type(shown).__name__}.{advice}")


def _method(shown: object, name: str) -> Callable[[], Any] | None:
    # Of its type, as Python finds its own special methods: there are objects that answer to any name.
    if isinstance(shown, type) or not callable(getattr(type(shown), name, None)):
        return None
    method: Callable[[], Any] = getattr(shown, name)
    return method


def _spec(shown: object) -> Mapping[str, Any] | None:
    if isinstance(shown, Mapping):
        return shown if is_vega_lite(shown) else None
    if _method(shown, "to_dict") is None:
        return None
    try:
        spec = plain_spec(shown)
    except Exception as error:
        if _method(shown, "_repr_html_") is not None:
            return None
        raise ValueError(f"The to_dict() of this {type(shown).__name__} failed: {error}") from error
    return spec if isinstance(spec, Mapping) and is_vega_lite(spec) else None


def _repr_html(shown: object) -> str | None:
    method = _method(shown, "_repr_html_")
    if method is None:
        return None
    try:
        html = method()
    except Exception as error:
        name = type(shown).__name__
        raise ValueError(f"The _repr_html_() of this {name} failed: {type(error).__name__}: {error}") from error
    # IPython also takes it with metadata, and None where an object has nothing to show.
    html = html[0] if isinstance(html, tuple) and html else html
    return html if isinstance(html, str) else None


def _frame(html: str, shown: object) -> dict[str, Any]:
    name = type(shown).__name__
    cleaned = cleaned_html(html)
    if not cleaned.shows_something:
        raise ValueError(
            f"The HTML of this {name} shows nothing without its scripts, and nothing in a report runs: show a picture "
            "of it, or its data as a table."
        )
    return {"html": cleaned.html, "title": name, "remark": cleaned.remark}


def _figure(shown: object) -> Any:
    """The figure that an object is, or is a part of, or has; None if there is none."""
    if instance_of(shown, "matplotlib.figure", "FigureBase") or instance_of(shown, "matplotlib.axes", "Axes"):
        figure: Any = shown
        # An axes leads to its figure, and a figure within a figure to the outermost.
        while getattr(figure, "figure", None) is not None and figure.figure is not figure:
            figure = figure.figure
        return figure
    if instance_of(shown, "matplotlib.artist", "Artist"):
        return None  # a line has its figure too, but whoever shows a line does not mean all of that
    held = getattr(shown, "figure", None)
    return held if instance_of(held, "matplotlib.figure", "FigureBase") else None
