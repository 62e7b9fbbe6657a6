"""Files of codes: what a template says, and one clear sentence for whatever is none."""

from __future__ import annotations

import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import probekit
from probekit_plugins.control_codes import ControlCodesOptions
from probekit_plugins.control_codes.codes import codes


def read(path: Path, text: str | bytes, **options: object) -> list[tuple[str, str | None, tuple[int, ...]]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(code.name, code.prefix, code.ids) for code in codes(ControlCodesOptions(codes=str(path), **options))]


def test_the_codes_that_come_along_are_those_of_the_paper() -> None:
    found = {code.name: code.prefix for code in codes(ControlCodesOptions())}
    assert list(found) == [
        *("Wikipedia", "Books", "Reviews", "Links", "Translation", "News", "multilingual", "Questions", "Explain"),
        *("Horror", "Relationships", "Legal"),
    ]
    assert found["Horror"] == "Horror "
    assert found["Reviews"] == "Reviews Rating: 5.0 "
    assert found["Questions"] == "Questions Q: What is the capital of India? A: "
    assert str(found["Translation"]).startswith("Translation English : ")
    assert str(found["Translation"]).endswith(" ; French : ")
    assert all(code.description for code in codes(ControlCodesOptions()))


def test_fields_take_the_place_of_defaults_and_codes_come_in_the_order_asked_for() -> None:
    options = ControlCodesOptions(only="Reviews,Books", fields={"rating": "1.0"})  # type: ignore[arg-type]
    assert [(code.name, code.prefix) for code in codes(options)] == [
        ("Reviews", "Reviews Rating: 1.0 "),
        ("Books", "Books "),
    ]


def test_a_field_may_hold_braces_and_a_template_doubled_ones(tmp_path: Path) -> None:
    text = """[codes.A]\ntemplate = "{{x}} {b}{text}"\nfields = { b = "{text}" }"""
    assert read(tmp_path / "c.toml", text) == [("A", "{x} {text}", ())]


def test_texts_are_found_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[codes.A]\ntemplate = "A {text}"\ntexts = "a.txt"\n[codes.B]\nids = [5]')
    found = codes(ControlCodesOptions(codes=str(tmp_path / "c.toml"), texts={"B": "b.txt"}))
    assert [code.texts for code in found] == [tmp_path / "a.txt", Path("b.txt")]


BAD = {
    "no TOML": ("[codes.A", "is no TOML"),
    "a code twice": ('[codes.A]\ntemplate = "a {text}"\n[codes.A]\ntemplate = "b {text}"', "is no TOML"),
    "lists in lists": ("a = " + "[" * 5000 + "]" * 5000, "be read as TOML"),
    "a number of too many digits": ("a = " + "9" * 5000, "be read as TOML"),
    "no UTF-8": (b"\xff\xfe", "is not UTF-8"),
    "too large": ("#" * (1 << 20) + "\n[codes.A]", "larger than 128 KiB"),
    "nothing": ("", "has no codes"),
    "codes that are a list": ("codes = [1]", "has no codes"),
    "something beside codes": ('title = "x"\n[codes.A]\ntemplate = "a {text}"', "has 'title' at its top"),
    "too many": ("\n".join(f'[codes.c{n}]\ntemplate = "{n} {{text}}"' for n in range(257)), "257 codes"),
    "no table": ("[codes]\nA = 1", "expected a table"),
    "an unknown key": ('[codes.A]\ntemplat = "a {text}"', "Did you mean 'template'"),
    "no template": ('[codes.A]\ndescription = "a"', "has no `template`"),
    "a template that is no text": ("[codes.A]\ntemplate = 3", "`template` = 3"),
    "no {text}": ('[codes.A]\ntemplate = "a"', "has no {text}"),
    "{text} in the middle": ('[codes.A]\ntemplate = "a {text} b"', "goes on after {text}"),
    "{text} twice": ('[codes.A]\ntemplate = "a {text} {text}"', "goes on after {text}"),
    "{text} in braces": ('[codes.A]\ntemplate = "a {{text}}"', "has no {text}"),
    "nothing before {text}": ('[codes.A]\ntemplate = "{text}"', "nothing stands before"),
    "a field without a value": ('[codes.A]\ntemplate = "a {b} {text}"', "{b} has no value"),
    "a default of no field": ('[codes.A]\ntemplate = "a {text}"\nfields = { b = "x" }', "default for 'b'"),
    "a default that is no text": ('[codes.A]\ntemplate = "a {b} {text}"\nfields = { b = [1] }', "`fields` is"),
    "an open brace": ('[codes.A]\ntemplate = "a { {text}"', "brace|no field"),
    "a field by number": ('[codes.A]\ntemplate = "a {0} {text}"', "0} is no field"),
    "a field without a name": ('[codes.A]\ntemplate = "a {} {text}"', "{} is no field"),
    "an attribute of a field": ('[codes.A]\ntemplate = "a {b.__class__} {text}"', "is no field"),
    "a format": ('[codes.A]\ntemplate = "a {b:>9999999999} {text}"\nfields = { b = "x" }', "is no field"),
    "ids and a template": ('[codes.A]\ntemplate = "a {text}"\nids = [1]', "both `ids` and a template"),
    "no ids": ("[codes.A]\nids = []", "expected a list of token ids"),
    "ids that are none": ("[codes.A]\nids = [true, -1]", "expected a list of token ids"),
    "a file of texts that is no text": ('[codes.A]\ntemplate = "a {text}"\ntexts = 3', "`texts` is 3"),
    "the name of no code": ('[codes.none]\ntemplate = "a {text}"', "cannot be called 'none'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_codes_is_one_clear_sentence(name: str, tmp_path: Path) -> None:
    text, expected = BAD[name]
    with pytest.raises(probekit.UsageError, match=expected) as raised:
        read(tmp_path / "c.toml", text)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert sentence.endswith((".", "?"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(probekit.UsageError, match=r"nowhere\.toml' cannot be read: No such file"):
        codes(ControlCodesOptions(codes=str(tmp_path / "nowhere.toml")))
    with pytest.raises(probekit.UsageError, match="cannot be read"):
        codes(ControlCodesOptions(codes=str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"only": "Horor"}, "no code 'Horor'.*Did you mean 'Horror'"),
        ({"texts": {"Horor": "x"}}, "no code 'Horor'"),
        ({"texts": {"Legal": "x"}, "only": "Horror"}, "not among those that are used"),
        ({"fields": {"ratin": "1"}}, "no template|No template has the field 'ratin'.*rating"),
    ],
)
def test_names_that_are_not_there_are_refused(options: dict[str, object], expected: str) -> None:
    with pytest.raises(probekit.UsageError, match=expected):
        codes(ControlCodesOptions(**options))


@pytest.mark.parametrize(
    "options", [{"only": "Horror,Horror"}, {"penalty_form": "literal,literal"}, {"save": True}, {"penalty": 0}]
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"once|needs `steps`|greater than"):
        ControlCodesOptions(**options)


@given(st.text(alphabet=string.printable, max_size=30))
def test_any_template_is_read_or_refused_by_a_sentence(template: str) -> None:
    import json
    import tempfile

    text = f"[codes.A]\ntemplate = {json.dumps(template + '{text}')}"
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            [(_, prefix, _)] = read(Path(folder) / "c.toml", text)
        except probekit.UsageError:
            return
    assert prefix == template.replace("{{", "{").replace("}}", "}")
