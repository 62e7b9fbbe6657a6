"""Values that are near what is expected, and wrong: the draws that find something where random bytes find nothing."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

# Written into JSON as it stands, where json.dumps would not write it.
RAW = {"@deep": "[" * 50_000 + "]" * 50_000, "@digits": "9" * 5000, "@exponent": "1e999", "@nan": "NaN"}

ODD_TEXTS = [
    *("", " ", "x", "0", "-1", "true", "null", "nan", "inf", "../../outside", "/etc/passwd", "a/../../b", ".", ".."),
    *("\0", "a\0b", "\ud800", "\udfff", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff", "\ufffe", "\U0010ffff"),
    *("\r", "\n", "\r\n", "a\nb", "\x1b[31mred\x1b[0m", "\x7f", "\x85", "\x9b1m", "\xad", "\u3164", "\u2800"),
    *("</script><script>x()</script>", "<img src=x onerror=x()>", '" onload="x()', "javascript:x()", "{{ x }}", "%s%n"),
    *("e" + "\u0301" * 300, "👩‍👩‍👧‍👦", "🏳️‍🌈", "ﷺ", "ａ", "İ", "ß", "\U000e0041", "مرحبا", "x" * 5000, "block.0"),
    "__proto__",
]  # fmt: skip
ODD_NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 7, 32, 10_000, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400, -(10**400)),
    *(0.5, -0.5, 1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), -0.0, True, False),
]  # fmt: skip

# The code points that mean something to something: controls, surrogates, bidi, joiners, marks, noncharacters.
_SPECIAL_POINTS = [
    *range(0x20),
    *range(0x7F, 0xA1),
    *(0xAD, 0x034F, 0x0600, 0x061C, 0x115F, 0x17B4, 0x180E, 0x2800, 0x3000, 0x3164, 0xFEFF, 0xFFA0, 0xFFFC, 0xFFFD),
    *range(0x2000, 0x2010),
    *range(0x2028, 0x2030),
    *range(0x205F, 0x2070),
    *(0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFE, 0x10FFFF),
    *(0x0300, 0x0301, 0x0489, 0x20DD, 0xFE0F, 0x200D, 0x1F3FB, 0x1F468, 0x1F1E6, 0xE0001, 0xE0041, 0xE007F, 0xE0100),
    *map(ord, "<>&\"'`{}%\\/=#[]|*_~-.:;,$(): aAzZ09éßİıſ中あ한ﷺ"),
]
characters = st.sampled_from([chr(point) for point in _SPECIAL_POINTS]) | st.characters()
texts = st.text(characters, max_size=12) | st.sampled_from(ODD_TEXTS)

numbers = st.sampled_from(ODD_NUMBERS) | st.integers(-(2**70), 2**70) | st.floats()
leaves = st.none() | numbers | texts
json_values: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
raw_values = st.sampled_from([{"@raw": name} for name in RAW])
moments = st.sampled_from(
    [datetime.date(1, 1, 1), datetime.datetime(2026, 1, 1), datetime.time(1, 2), datetime.datetime.max]
)
toml_values = st.recursive(
    numbers | texts | moments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)


def json_text(document: Any) -> str:
    """JSON with NaN, lone surrogates, and what `RAW` names, as it stands."""
    text = json.dumps(document)
    for name, raw in RAW.items():
        text = text.replace(json.dumps({"@raw": name}), raw)
    return text


def places(document: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a value in a JSON document, the document itself first."""
    items: Any = ()
    if isinstance(document, Mapping):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    return [before, *(place for key, value in items for place in places(value, (*before, key)))]


def value_at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


def changed(document: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    """The document, of which nothing is changed, with one change at a place."""
    if not place:
        return value if how == "replace" else document
    first, *rest = place
    copy = dict(document) if isinstance(document, Mapping) else list(document)
    if rest:
        copy[first] = changed(copy[first], tuple(rest), how, value)
    elif how == "replace":
        copy[first] = value
    elif how == "remove":
        del copy[first]
    elif how == "rename" and isinstance(copy, dict):
        return {(str(value) if key == first else key): part for key, part in copy.items()}
    elif how == "add" and isinstance(copy, dict):
        copy[str(value)] = copy[first]
    elif how == "add":
        copy.insert(first, copy[first])
    elif how == "nest":
        copy[first] = [copy[first]]
    elif how == "text":
        copy[first] = str(copy[first])
    elif how == "number" and isinstance(copy[first], int | float):
        copy[first] = -copy[first] if copy[first] else 1
    return copy


# A change to a document: which of its places (taken modulo their number), how, and a value.
changes = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add", "nest", "text", "number"]),
        json_values | raw_values,
    ),
    min_size=1,
    max_size=3,
)


def with_changes(document: Any, chosen: list[tuple[int, str, Any]]) -> Any:
    for number, how, value in chosen:
        where = places(document)
        document = changed(document, where[number % len(where)], how, value)
    return document


# A change to bytes: where (modulo the length), how many go, and what comes in their place.
byte_changes = st.lists(
    st.tuples(
        st.integers(0, 2**20),
        st.sampled_from([0, 0, 1, 1, 4, 8, 64, 10**9]),
        st.binary(max_size=9)
        | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b'"', b"}", b"[", b"9" * 30]),
    ),
    min_size=1,
    max_size=3,
)


def with_byte_changes(content: bytes, chosen: list[tuple[int, int, bytes]]) -> bytes:
    for place, gone, come in chosen:
        start = place % (len(content) + 1)
        content = content[:start] + come + content[start + gone :]
    return content
