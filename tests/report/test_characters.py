import pytest
from hypothesis import given
from hypothesis import strategies as st

from probekit.report.characters import numbered, plain, visible, visible_pieces


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "·the"),
        ("a b", "a b"),
        ("a  b ", "a ·b·"),
        ("   ", "···"),
        ("", "∅"),
        ("\n\t", "↵⇥"),
        ("\r", "⟨U+000D⟩"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\x00", "⟨U+0000⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("\u00a0", "⟨U+00A0⟩"),
        ("\ufe0f", "⟨U+FE0F⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("\ue000", "⟨U+E000⟩"),
        ("\u0301", "◌\u0301"),
        ("naïve 東京 🙂", "naïve 東京 🙂"),
    ],
)
def test_a_token_is_shown_with_its_invisible_characters(token: str, shown: str) -> None:
    assert visible(token) == shown


@given(st.text(alphabet=st.characters(codec=None)))
def test_every_token_is_visible_and_can_be_written_as_utf_8(token: str) -> None:
    shown = visible(token)
    assert shown.strip() == shown != ""
    assert all(char.isprintable() for char in shown)
    shown.encode("utf-8")


def test_signs_are_told_apart_from_the_characters_they_look_like() -> None:
    assert visible_pieces(" a") == [("·", True), ("a", False)]
    assert visible_pieces("·a") == [("·a", False)]


@given(st.text(alphabet=st.characters(codec=None)))
def test_prose_keeps_its_spaces_and_lines_and_loses_what_would_reorder_it(text: str) -> None:
    shown = plain(text)
    assert all(char.isprintable() or char in "\n\t\u00a0" for char in shown)
    shown.encode("utf-8")


@given(st.lists(st.sampled_from(["a", "a₂", "a₃", "b"])))
def test_repeated_labels_become_distinct_and_first_ones_stay(labels: list[str]) -> None:
    distinct = numbered(labels)
    assert len(set(distinct)) == len(labels)
    assert [
        name for name, label in zip(distinct, labels, strict=True) if labels.index(label) == distinct.index(name)
    ] == (list(dict.fromkeys(labels)))
