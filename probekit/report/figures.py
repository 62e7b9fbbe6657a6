"""Numbers on their way into a page (finite or absent) and on their way to a reader (few digits, aligned)."""

import math
from collections.abc import Sequence

from probekit.report.characters import plain, without_surrogates

ABSENT = "–"
LARGEST = 2**1023
Cell = str | float | int | bool | None


def number(value: object) -> float | int | None:
    """A JSON-able number; NaN, infinity and None become None. Accepts numpy and torch scalars without importing them.

    Raises ValueError for anything that is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return int(value) if abs(value) < LARGEST else None  # a browser would read infinity
    if not isinstance(value, float):
        item = getattr(value, "item", None)
        if callable(item) and not isinstance(plain_value := item(), type(value)):
            return number(plain_value)
        if isinstance(value, str) or not hasattr(value, "__float__"):
            raise ValueError(f"A figure of a page must be a number or None, but {value!r} is a {type(value).__name__}.")
        value = float(value)
    return float(value) if math.isfinite(value) else None


def cell(value: object) -> Cell:
    """A table's cell as JSON has it: text, a truth value, or a number as `number` makes it. Raises ValueError."""
    if isinstance(value, str):
        return without_surrogates(str(value))
    if isinstance(value, bool):
        return value
    item = getattr(value, "item", None)
    if callable(item):
        return cell(item())
    return number(value)


def figure(value: Cell) -> str:
    """One cell for a reader: four significant digits, exponents only where the plain number would be long."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, int):
        return str(value).replace("-", "−")
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if magnitude != 0 and (magnitude >= 1e7 or magnitude < 1e-4):
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif magnitude >= 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def column(values: Sequence[Cell]) -> list[str]:
    """A table's column for a reader: as `figure`, with the decimals of its plain numbers made equal so they line up."""
    texts = [figure(value) for value in values]
    fractional = [isinstance(value, float) and "e" not in text for value, text in zip(values, texts, strict=True)]
    decimals = [len(text.partition(".")[2]) for text, counts in zip(texts, fractional, strict=True) if counts]
    magnitudes = [abs(value) for value in values if isinstance(value, float) and value]
    shared = max(decimals, default=0)
    if shared > 3 and max(magnitudes) >= 10:
        # Large figures beside small ones: three decimals suit both, unless they would leave too little of the small.
        shared = 3 if min(magnitudes) >= 0.01 else 0
    if not shared or "e" in "".join(_numeric_texts(values, texts)):
        return texts
    return [
        f"{value:.{shared}f}".replace("-", "−") if counts else text
        for value, text, counts in zip(values, texts, fractional, strict=True)
    ]


def is_numeric(values: Sequence[Cell]) -> bool:
    """Whether a column holds numbers only (absent figures aside), and is set flush right."""
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)


def _numeric_texts(values: Sequence[Cell], texts: Sequence[str]) -> list[str]:
    return [text for value, text in zip(values, texts, strict=True) if isinstance(value, float)]
