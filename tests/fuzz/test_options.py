"""Options of every bundled analysis, as texts of a command line and as values of a TOML file."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import strategies as st

from probekit.cli.run import ids_of, pair_of
from probekit.plugins import Plugins
from probekit.runs.command import command_line, option_text, option_value
from probekit.runs.config import resolve
from tests.fuzz.harness import Target, answer, few, many
from tests.fuzz.values import ODD_TEXTS, texts, toml_values


@cache
def plugins() -> Plugins:
    return Plugins()


def literals(annotation: Any) -> list[Any]:
    """The words that a type names, wherever in it."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in literals(part)]


def near(field: Any) -> list[Any]:
    """Values at and about what a field takes: its default, its words and what is like them, the ends of its range."""
    found: list[Any] = [field.get_default(), [field.get_default()], str(field.get_default())]
    words = [word for word in literals(field.annotation) if isinstance(word, str)]
    found += [*words, *(word.upper() for word in words), *(f" {word}" for word in words), ",".join(words), words]
    for mark in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            end = getattr(mark, name, None)
            if isinstance(end, int | float):
                found += [end, end - 1, end + 1, end + 1e-12, -end, str(end), float(end)]
    return found


def keys_of(analysis: Any) -> list[str]:
    return list(analysis.options_model.model_fields)


@st.composite
def chosen_options(draw: st.DrawFn) -> tuple[list[str], dict[str, Any]]:
    """One analysis or two, and options that are theirs, nearly theirs, or nobody's."""
    known = plugins().analyses()
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=2, unique=True))
    options: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(names))
        fields = known[name].options_model.model_fields
        key = draw(st.sampled_from(sorted(fields)))
        value = draw(st.sampled_from(near(fields[key])) | toml_values)
        shape = draw(st.integers(0, 7))
        if shape == 0:
            key = draw(texts)
        if shape == 1:
            options[name] = draw(st.sampled_from([{key: value}, {key: {key: value}}, value, [value]]))
        else:
            options[f"{name}.{key}" if len(names) > 1 or shape == 2 else key] = value
    return names, options


def check_values(given: tuple[list[str], dict[str, Any]]) -> None:
    """What is resolved is written down, and read back as the same."""
    names, options = given
    resolved = answer(lambda: resolve([("python", {"plugins": names, "options": options})], plugins()))
    if resolved is None:
        return
    json.dumps(resolved.document(), allow_nan=False).encode()
    written = resolved.config.to_toml().encode().decode()
    again = resolve([("config.toml", tomllib.loads(written))], plugins())
    assert again.options == resolved.options
    command_line(resolved).encode()


TOML_PIECES = [
    *("[", "]", "{", "}", ",", "=", '"', "'", '"""', "\\", "#", "\n", "\t", " ", ".", ":", "-", "+", "_", "e", "E"),
    *("0x", "0b", "0o", "1979-05-27", "T07:32:00Z", "07:32:00.999999", "inf", "nan", "true", "false", "1", "9" * 5000),
    *("0x" + "f" * 5000, "[" * 2000, "{a=" * 500, "'''", "\\ud800", '"\\uD800"', '"\\U0010ffff"', "block", "blocks"),
]  # fmt: skip


@st.composite
def option_texts(draw: st.DrawFn) -> tuple[str, str]:
    """`-o KEY=VALUE` as somebody types it."""
    known = plugins().analyses()
    name = draw(st.sampled_from(sorted(known)))
    fields = known[name].options_model.model_fields
    key = draw(st.sampled_from(sorted(fields)))
    how = draw(st.integers(0, 5))
    if how < 2:
        text = f"{key}={draw(st.sampled_from(near(fields[key])).map(option_text))}"
    elif how == 2:
        text = f"{key}={draw(texts)}"
    elif how == 3:
        text = draw(texts)
    else:
        text = f"{key}={''.join(draw(st.lists(st.sampled_from(TOML_PIECES), max_size=8)))}"
    return name, text


def check_text(given: tuple[str, str]) -> None:
    name, text = given
    pair = answer(lambda: pair_of(text))
    if pair is not None:
        check_values(([name], dict([pair])))
    answer(lambda: ids_of(text))


def check_round_trip(value: Any) -> None:
    """What is written for `-o` is read as the same value."""
    if value == value and "nan" not in repr(value).lower():
        assert option_value(option_text(value)) == value


plain_values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)

TARGETS = [
    Target("options as values", chosen_options(), check_values, few=200, many=22_000),
    Target("options as texts", option_texts(), check_text, few=200, many=16_000),
    Target("options written and read", plain_values, check_round_trip, few=200, many=5000),
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_what_is_chosen_is_taken_or_refused_with_a_sentence(target: Target) -> None:
    few(target)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_of_very_many_inputs(target: Target) -> None:
    many(target)


@pytest.mark.parametrize("text", [f"steps={text}" for text in (*TOML_PIECES, *ODD_TEXTS)])
def test_each_odd_value_of_a_number(text: str) -> None:
    check_text(("clamped-walk", text))
