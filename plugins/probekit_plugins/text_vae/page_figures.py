"""What the pages of text autoencoders share: names of settings, columns with their spread over seeds, short texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from probekit_plugins.autoencoder.page_figures import number, spread
from probekit_plugins.text_vae.recipe import AUTOENCODER, COLLAPSED

if TYPE_CHECKING:
    from probekit import Result

Row = Mapping[str, Any]
NO_Z, LSTM = "no-z", "lstm"
LABELS = {
    NO_Z: "decoder without z",
    LSTM: "LSTM language model",
    AUTOENCODER: "autoencoder without KL",
    COLLAPSED: "control: β = 1, λ = 0",
}
# Characters of a text that are shown.
LONGEST = 240
# Blocks of one kind that are open; those after them are folded.
OPEN = 4


def label(name: object) -> str:
    """A setting's name for a reader."""
    return LABELS.get(str(name), str(name).replace("=", " = "))


def short(name: object) -> str:
    """A setting's name where there is little room."""
    return {AUTOENCODER: "autoencoder", COLLAPSED: "control"}.get(str(name), label(name))


def settings(result: Result) -> list[Row]:
    """A row for each setting, in the order in which they were trained."""
    return list(result.tables.get("settings", []))


def setting(result: Result, name: str) -> Row | None:
    """The setting of this name, if it was trained."""
    return next((row for row in settings(result) if row["name"] == name), None)


def chosen(rows: Iterable[Row]) -> list[Row]:
    """Those with a λ that was asked for, without what stands beside."""
    return [row for row in rows if row["name"] not in LABELS]


def having(rows: Iterable[Row], *figures: str) -> list[Row]:
    """The rows in which none of these figures is missing."""
    return [row for row in rows if all(number(row.get(figure)) is not None for figure in figures)]


def several_seeds(rows: Iterable[Row]) -> bool:
    """Whether there are figures with a spread."""
    return any((row.get("seeds") or 1) > 1 for row in rows)


def column(rows: Sequence[Row], figure: str, digits: str) -> list[object]:
    """A figure of each row with its spread over seeds, rounded; as text where one of them has a spread."""
    cells = [spread(row, figure, digits) for row in rows]
    if not any(isinstance(cell, str) for cell in cells):
        return [float(f"{cell:{digits}}") if isinstance(cell, float) else cell for cell in cells]
    return [written(cell, digits) if isinstance(cell, float) else cell for cell in cells]


def decimals(rows: Iterable[Row], figure: str) -> str:
    """So many that a table is not wide: one where figures are great."""
    return ".1f" if max((abs(float(row[figure])) for row in having(rows, figure)), default=0.0) >= 10 else ".2f"


def written(value: float, digits: str = ".2f") -> str:
    """A figure in a sentence, with a minus sign of its own; what rounds to zero has none."""
    return f"{value:z{digits}}".replace("-", "−")


def by_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each setting, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["name"]), []).append(row)
    return found


def shortened(text: object) -> str:
    """A text as it is shown: what is empty is called so, what is long is cut, and a line's end is a sign."""
    whole = str(text).replace("\r", "").replace("\n", "↵")
    if not whole.strip():
        return "(nothing)"
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"
