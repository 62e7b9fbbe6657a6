"""Vega-Lite specs written by others: made plain, and checked to load nothing.

A report must open offline without a request leaving it. The page's content-security policy would block a request, but
the reader would see a broken chart; so a spec that asks for one is refused when it is added, with a sentence.
"""

import sys
from collections.abc import Mapping
from typing import Any

from probekit.report.characters import without_surrogates
from probekit.report.figures import number

_REFUSAL = "A chart in a report must carry its data with it, because the report opens offline: "
# The parts of a spec that hold data: nothing in them is read as an instruction, and they can be large.
_DATA_KEYS = ("values", "datasets")
# Of a spec, each part in another; more than any chart has, and few enough for every walk through one.
MOST_LEVELS = 100


def checked_spec(spec: object) -> dict[str, Any]:
    """The spec as plain JSON types, without its schema address and embedding options.

    Raises ValueError if it is neither a dict nor an object with `to_dict()`, is not Vega-Lite, or loads something.
    """
    spec = plain_spec(spec)
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"A chart is a Vega-Lite dict or an object with to_dict(), such as an Altair chart; "
            f"this one is a {type(spec).__name__}."
        )
    schema = str(spec.get("$schema", ""))
    if "/schema/vega/" in schema:
        raise ValueError(f"A chart is a Vega-Lite spec, but this one declares {schema}, which is Vega.")
    # $schema would only make vega-embed compare versions; usermeta could replace our loader and options.
    parts = {str(key): _plain(value, MOST_LEVELS) for key, value in spec.items() if key not in ("$schema", "usermeta")}
    _refuse_loading(parts)
    return parts


def plain_spec(spec: object) -> object:
    """What an object's `to_dict()` gives, or the object itself where it has none.

    An Altair chart gives all of its data, inline: the author's own limit of rows and way with data are set aside for
    this one call, since they would end it with an error or write the data to a file.
    """
    to_dict = getattr(spec, "to_dict", None)
    if not callable(to_dict):
        return spec
    altair = sys.modules.get("altair")
    if altair is None or not isinstance(spec, altair.TopLevelMixin):
        return to_dict()
    with altair.data_transformers.enable("default", max_rows=None):
        return to_dict()


def is_vega_lite(spec: Mapping[str, Any]) -> bool:
    """Whether a dict is meant as a chart: by its schema, or because it has a mark or is composed of others."""
    declared = isinstance(spec.get("$schema"), str) and "/schema/vega" in spec["$schema"]
    composed = any(isinstance(spec.get(key), list) for key in ("layer", "hconcat", "vconcat", "concat"))
    repeated = isinstance(spec.get("spec"), Mapping) and ("facet" in spec or "repeat" in spec)
    return declared or composed or repeated or isinstance(spec.get("mark"), str | Mapping)


def _refuse_loading(part: object) -> None:
    if isinstance(part, Mapping):
        data = part.get("data")
        if isinstance(data, Mapping) and "url" in data:
            raise ValueError(_REFUSAL + f"this spec loads {data['url']!r}. Put the values into data.values.")
        mark = part.get("mark")
        if mark == "image" or (isinstance(mark, Mapping) and mark.get("type") == "image"):
            raise ValueError(_REFUSAL + "this spec has an image mark. Use another mark, such as point or text.")
        for key, value in part.items():
            if key not in _DATA_KEYS:
                _refuse_loading(value)
    elif isinstance(part, list | tuple):
        for value in part:
            _refuse_loading(value)


def _plain(value: object, levels: int) -> Any:
    if not levels:
        raise ValueError(f"The parts of a chart lie at most {MOST_LEVELS} deep in each other, but these lie deeper.")
    if isinstance(value, Mapping):
        return {without_surrogates(str(key)): _plain(entry, levels - 1) for key, entry in value.items()}
    if isinstance(value, str):
        return without_surrogates(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry, levels - 1) for entry in value]
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return _plain(to_list(), levels - 1)
    return number(value)
