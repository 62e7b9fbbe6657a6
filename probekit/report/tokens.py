"""Tokens on a page: one row, or rows over steps, as JSON.

Of the tokens of a trajectory most repeat, so it holds each distinct token once and rows of indices; and of more steps
than a page can carry, it holds some, evenly spaced, and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from probekit.report.characters import numbered, without_surrogates
from probekit.report.figures import number

Mark = Literal["right", "wrong"]
MARKS: tuple[Mark, ...] = get_args(Mark)
# What one trajectory puts into a page at most: places in its rows, and characters of its distinct tokens.
MOST_PLACES = 200_000
MOST_CHARACTERS = 800_000
ROW = 10


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its text as decoded, whether it is right, a value in 0..1 for its colour, text for hover and focus."""

    text: str
    mark: Mark | None = None
    value: float | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A labelled sequence of tokens, such as one step of a trajectory; `note` stands at its end."""

    label: str
    tokens: Sequence[Token]
    note: str = ""


def row_json(row: TokenRow) -> dict[str, Any]:
    """A row as JSON types. Raises ValueError for a mark or a value that cannot be drawn."""
    tokens = [_token_json(token) for token in row.tokens]
    return {"label": _text(row.label), "tokens": tokens, "note": _text(row.note)}


def row_from_json(row: Mapping[str, Any]) -> TokenRow:
    """The row that `row_json` wrote."""
    return TokenRow(row["label"], [Token(**token) for token in row["tokens"]], row.get("note", ""))


def marks_json(marks: Mapping[str, str] | None) -> dict[str, str]:
    """What each mark means, in the author's words. Raises ValueError for a mark that there is not."""
    for mark in marks or {}:
        if mark not in MARKS:
            raise ValueError(f"The marks of tokens are 'right' and 'wrong', but {mark!r} was given a meaning.")
    return {mark: _text(meaning) for mark, meaning in (marks or {}).items()}


def trajectory_json(series: Mapping[str, Sequence[TokenRow]]) -> dict[str, Any]:
    """The rows of each series over steps: `{"vocabulary": [token, …], "series": [{"name", "rows"}, …], "thinned"}`.

    A row's `tokens` are indices into the vocabulary. Of the steps every `k`-th is kept, and the last, with a `k` that
    stays within `MOST_PLACES` and `MOST_CHARACTERS`; `thinned` says so. Only rows that are kept are asked for.
    """
    steps = max(map(len, series.values()), default=0)
    if not steps or not all(len(rows) for rows in series.values()):
        raise ValueError("A trajectory has at least one series, and each series at least one row of tokens.")
    expected = sum(len(rows) * (len(rows[-1].tokens) + ROW) for rows in series.values())
    stride = max(1, -(-expected // MOST_PLACES))
    while True:
        encoded = _encode(series, stride)
        # A row costs as much as a few tokens: it has a label and a note.
        places = sum(len(row["tokens"]) + ROW for entry in encoded["series"] for row in entry["rows"])
        characters = sum(len(token["text"]) + len(token.get("title", "")) + 16 for token in encoded["vocabulary"])
        kept = len(_kept(steps, stride))
        if kept <= 2 or (places <= MOST_PLACES and characters <= MOST_CHARACTERS):
            break
        stride = max(stride + 1, stride * 21 // 20)
    if stride > 1:
        encoded["thinned"] = f"{kept} of {steps} steps are on this page, evenly spaced, with the first and the last."
    return encoded


def trajectory_rows(block: Mapping[str, Any]) -> dict[str, list[TokenRow]]:
    """The series of a trajectory as `trajectory_json` encoded it, as rows again. Raises KeyError for an index that the
    vocabulary does not have.
    """
    vocabulary = dict(enumerate(Token(**token) for token in block["vocabulary"]))
    return {
        entry["name"]: [
            TokenRow(row["label"], [vocabulary[index] for index in row["tokens"]], row.get("note", ""))
            for row in entry["rows"]
        ]
        for entry in block["series"]
    }


def _encode(series: Mapping[str, Sequence[TokenRow]], stride: int) -> dict[str, Any]:
    places: dict[Token, int] = {}
    encoded = []
    for name, rows in zip(numbered([_text(name) for name in series]), series.values(), strict=True):
        kept = [rows[index] for index in _kept(len(rows), stride)]
        encoded.append(
            {
                "name": name,
                "rows": [
                    {
                        "label": _text(row.label),
                        "tokens": [places.setdefault(token, len(places)) for token in row.tokens],
                        "note": _text(row.note),
                    }
                    for row in kept
                ],
            }
        )
    return {"vocabulary": [_token_json(token) for token in places], "series": encoded, "thinned": ""}


def _kept(count: int, stride: int) -> list[int]:
    """Every `stride`-th index below `count`, and the last."""
    return [*range(0, count - 1, stride), count - 1]


def _token_json(token: Token) -> dict[str, Any]:
    """A token as JSON; what is absent is left out, because there are thousands of them."""
    if token.mark is not None and token.mark not in MARKS:
        raise ValueError(f"A token's mark is 'right', 'wrong' or None, but it was {token.mark!r}.")
    content: dict[str, Any] = {"text": _text(token.text)}
    if token.mark is not None:
        content["mark"] = token.mark
    value = number(token.value)
    if value is not None:
        if not -1e-6 <= value <= 1 + 1e-6:
            raise ValueError(f"A token's value lies in 0..1 (it chooses a colour), but it was {value}.")
        content["value"] = min(max(value, 0), 1)
    if token.title:
        content["title"] = _text(token.title)
    return content


def _text(value: object) -> str:
    return without_surrogates(str(value))
