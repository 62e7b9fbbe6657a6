"""Text that may hold anything, made visible: what a reader sees is what the string contains.

Token strings come out of models and vocabularies, so they hold leading spaces, newlines, bidirectional overrides,
zero-width joiners, NUL and halves of surrogate pairs. A report that passes them on as they are shows nothing, or the
wrong order, or cannot be written as UTF-8.
"""

import unicodedata
from collections.abc import Iterator

EMPTY = "∅"
_SIGNS = {"\n": "↵", "\t": "⇥"}
_UNSEEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
# Default-ignorable and blank characters that Unicode files under letters, marks or symbols.
_UNSEEN_RANGES = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)


def without_surrogates(text: str) -> str:
    """The same text with each lone surrogate written as `⟨U+D800⟩`, so that it can be encoded as UTF-8."""
    if text.isascii():
        return text
    return "".join(_code_point(char) if 0xD800 <= ord(char) <= 0xDFFF else char for char in text)


def plain(text: str) -> str:
    """Text for reading: spaces, newlines and tabs stay, every other invisible character is shown as its code point."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return "".join(_code_point(char) if _is_unseen(char) and char not in " \n\t\u00a0" else char for char in text)


def one_line(text: str) -> str:
    """`plain` for a place with a single line, such as an axis title: runs of white space become one space."""
    return " ".join(plain(text).split())


def visible(text: str) -> str:
    """A token as one line of visible characters: ` the` → `·the`, a newline → `↵`, the empty string → `∅`."""
    return "".join(piece for piece, _ in visible_pieces(text))


def visible_pieces(text: str) -> list[tuple[str, bool]]:
    """`visible`, split into runs: (characters, whether they stand for others); a sign can so be set apart from text."""
    pieces: list[tuple[str, bool]] = []
    for shown, is_sign in _shown_characters(text):
        if pieces and pieces[-1][1] == is_sign:
            pieces[-1] = (pieces[-1][0] + shown, is_sign)
        else:
            pieces.append((shown, is_sign))
    return pieces or [(EMPTY, True)]


def numbered(labels: list[str]) -> list[str]:
    """Labels made distinct: the second `the` becomes `the₂`, so that a chart does not merge two positions."""
    taken = set(labels)
    seen: dict[str, int] = {}
    distinct = []
    for label in labels:
        count = seen.get(label, 0) + 1
        candidate = label
        if count > 1:
            while (candidate := label + _subscript(count)) in taken:
                count += 1
            taken.add(candidate)
        seen[label] = count
        distinct.append(candidate)
    return distinct


def _shown_characters(text: str) -> Iterator[tuple[str, bool]]:
    first_inked = len(text) - len(text.lstrip(" "))
    last_inked = len(text.rstrip(" "))
    for index, char in enumerate(text):
        if char == " ":
            # A space between words reads as a space; one at an edge would be lost, and so would the second of two.
            at_edge = index < first_inked or index >= last_inked or text[index - 1] == " "
            yield ("·", True) if at_edge else (" ", False)
        elif char in _SIGNS:
            yield _SIGNS[char], True
        elif _is_unseen(char):
            yield _code_point(char), True
        elif unicodedata.combining(char) and index == 0:
            yield "◌" + char, False
        else:
            yield char, False


def _is_unseen(char: str) -> bool:
    if char.isascii():
        return not char.isprintable()
    point = ord(char)
    return unicodedata.category(char) in _UNSEEN_CATEGORIES or any(low <= point <= high for low, high in _UNSEEN_RANGES)


def _code_point(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def _subscript(number: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(number))
